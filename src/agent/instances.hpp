#pragma once
// The instances of this host, from launch to end: addresses and ports, network, supervisor, readiness.
// Of the io_context's thread; what blocks is handed to the Workers.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "agent/agent.hpp"
#include "agent/core/agent_core.hpp"
#include "agent/free_list.hpp"
#include "agent/images.hpp"
#include "agent/promise.hpp"
#include "agent/state_directory.hpp"
#include "agent/supervisor/client.hpp"
#include "agent/supervisor/spawn.hpp"
#include "agent/workers.hpp"
#include "net/host_network.hpp"
#include "os/pidfd.hpp"
#include "workload/instance.hpp"

namespace yado::agent {

/// What a restore needs: an image of the store, or a draft that is to prove itself.
using ImageSource = workload::ImageParts;

class Instances {
 public:
  struct Surroundings {
    boost::asio::io_context& io;
    const Config& config;
    const StateDirectory& directory;
    Workers& workers;
    net::HostNetwork& network;
    Images& images;
    std::function<std::shared_ptr<void>()> keep_alive;  ///< of what all this lives in
  };
  /// Told to the agent; never for an instance that is being launched or killed, and never for a builder.
  struct Events {
    std::function<void(const InstanceId&, const WorkloadId&, const std::string& how)> exited;
    std::function<void(const InstanceId&, bool runs)> runs;
    std::function<void(const InstanceId&, const std::string& why)> stands;  ///< still, although it runs; empty: it goes on
    /// The supervisor wants its lease renewed (also while it is launched).
    std::function<void(const InstanceId&, const WorkloadId&, Epoch, std::uint64_t ticket)> renew;
  };
  Instances(Surroundings around, Events events);
  ~Instances();

  /// Found at the agent's start: adopted when its supervisor answers (the report says as what), else cleared away.
  boost::asio::awaitable<std::optional<InstanceReport>> adopt(InstanceRecord record);

  /// Published ports and addresses that are none of ours (of a second agent on this host) are not given out. After the
  /// last adopt(); from here on one network stands ready for the next launch.
  void leave_to_others();

  /// Answered when it answers its readiness request (owner) or stands frozen (standby). After a failure something may
  /// be left of it: kill() it. `since`: when the call came that wants it.
  boost::asio::awaitable<Result<Launched>> launch(Launch wish, Instant since);
  boost::asio::awaitable<Result<Launched>> promote(Promote wish, Instant since);
  boost::asio::awaitable<Status> freeze(InstanceId id);
  /// Returns when nothing is left: processes, group, network, published port, directory.
  boost::asio::awaitable<void> kill(InstanceId id);

  /// A network and a supervisor with everything ready for an instance that will come from another host: the next launch of that name begins
  /// there. One per workload.
  boost::asio::awaitable<Status> expect(ExpectCall call);
  /// All others that were expected at that time are not any more.
  void keep_expected(const std::vector<InstanceId>& ids, Instant as_of);

  /// An archive is unpacked before it is needed: that takes seconds.
  boost::asio::awaitable<Status> prepare_root(WorkloadSpec spec);
  /// Starts a builder and waits until its start-up is complete.
  boost::asio::awaitable<Status> start_builder(BuildCall call);
  /// Checkpoints it into the directories of an image's parts; it does not run on.
  boost::asio::awaitable<Result<workload::Properties>> checkpoint(InstanceId id, workload::PartDirectories parts);
  /// The same of an instance that runs on; `image` becomes of it.
  boost::asio::awaitable<Result<workload::Properties>> checkpoint_running(InstanceId id, workload::PartDirectories parts, workload::NewImage image);
  /// It stands frozen afterwards, for another host to go on with, or runs on, if `how` says so.
  boost::asio::awaitable<Result<workload::Properties>> hand_over(InstanceId id, workload::PartDirectories parts, workload::Handover how);
  /// The memory of a running VM lies as `spec` says from now on; answered when it does. What is not quite as asked for.
  boost::asio::awaitable<Result<std::string>> resplit(InstanceId id, WorkloadSpec spec);
  /// A copy restored from `source` answers the readiness request; afterwards nothing is left of it.
  boost::asio::awaitable<Status> prove(InstanceId id, WorkloadSpec spec, ImageSource source);

  /// As seen from outside: a group that stands still, or whose processes are all stopped, is frozen.
  boost::asio::awaitable<InstanceState> inspect(InstanceId id);

  bool contains(const InstanceId& id) const { return live_.contains(id); }
  /// To its supervisor; null when there is none.
  std::shared_ptr<supervisor::Client> link(const InstanceId& id) const;
  std::string cgroup_of(const InstanceId& id) const;
  /// Lets go of every supervisor; the instances go on.
  void let_go();

 private:
  /// What an instance will be launched in: a network, and a supervisor inside it that waits for its instance.
  struct Shell {
    net::Ipv4 address;
    os::Netns network;
    supervisor::Spare supervisor;
  };
  Result<std::shared_ptr<Shell>> make_shell(net::Ipv4 address);
  struct Live {
    InstanceRecord record;
    WorkloadSpec spec;
    std::shared_ptr<supervisor::Client> link;  ///< null once the connection is closed
    std::shared_ptr<Shell> shell;              ///< only until its supervisor runs
    os::Pidfd supervisor;
    Promise<std::string> ended;  ///< how the instance ended, by itself or by kill()
    Promise<bool> launch_over;   ///< nothing of a launch or promotion is under way any more
    Promise<bool> gone;          ///< kill() is through
    bool killing = false;

    Live(const boost::asio::any_io_executor& executor, InstanceRecord made, WorkloadSpec of)
        : record(std::move(made)), spec(std::move(of)), ended(executor), launch_over(executor), gone(executor) {}
  };
  using LivePtr = std::shared_ptr<Live>;

  struct Expected {
    InstanceRecord record;
    std::shared_ptr<Shell> shell;  ///< null: it is being made, or cleared away
    Instant since{};               ///< when the call came
  };
  boost::asio::awaitable<void> forget(InstanceId id);
  supervisor::Config config_of(const InstanceRecord& record, const WorkloadSpec& spec) const;

  Result<LivePtr> enter(InstanceRecord record, WorkloadSpec spec);
  /// Making a network and starting a supervisor in it takes 10 to 40 ms here: the next launch finds them made.
  boost::asio::awaitable<void> make_spare();
  boost::asio::awaitable<Status> bring_up(LivePtr live);
  void publish(LivePtr live, Promise<Status> done);
  boost::asio::awaitable<Result<Launched>> launch_steps(LivePtr live, Launch wish, std::optional<ImageSource> source,
                                                        Instant since);
  boost::asio::awaitable<Status> run_readiness(LivePtr live, bool starting);
  boost::asio::awaitable<Status> warm_up(LivePtr live, bool starting);
  boost::asio::awaitable<Status> begin(LivePtr live, const std::optional<ImageSource>& source, bool frozen);
  boost::asio::awaitable<Status> settle(LivePtr live);
  boost::asio::awaitable<Status> add_chain(ImageId id, ImageSource& source);
  boost::asio::awaitable<Result<std::vector<std::string>>> disks_ahead(std::vector<ImageId> images);
  boost::asio::awaitable<Result<ImageSource>> source_of(ImageId id, WorkloadSpec spec);
  boost::asio::awaitable<Error> with_log(LivePtr live, Error error);
  boost::asio::awaitable<void> clear_away(InstanceRecord record);
  boost::asio::awaitable<void> save(LivePtr live);
  void spawn(boost::asio::awaitable<void> work);
  boost::asio::awaitable<Result<supervisor::Description>> connect(LivePtr live);
  supervisor::Events events_of(const LivePtr& live);
  /// Of a log: what a person needs to see why an application did not start.
  static std::string last_lines(const std::string& log, std::size_t count);
  void exited(const LivePtr& live, const std::string& how, const std::string& log);
  Endpoint endpoint(const InstanceRecord& record) const;

  Surroundings around_;
  Events events_;
  std::map<InstanceId, LivePtr> live_;
  FreeList addresses_, ports_;
  std::shared_ptr<Shell> spare_;
  std::map<InstanceId, Expected> expected_;
  bool making_spare_ = false;
  std::map<WorkloadId, nanoseconds> cold_took_;  ///< the bound of how long a faster way may take
};

}  // namespace yado::agent
