#pragma once
// Control's decisions: who owns which workload, when the right changes hands, and how redundancy is kept. Pure.
//
// Per workload there is one owner operation (grant -> wait for the fence -> raise on the best host, the next, …), one
// image operation (build or copy) and one standby operation at a time. Whatever is missing from what is wanted is found
// by `reconcile`, which looks at the whole state after every event; so a lost message or a restart costs time, never a
// step.
//
// The shell carries out take() in order: a Persist is durable before the Call behind it leaves.

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"
#include "control/core/records.hpp"
#include "detect/heartbeat.hpp"
#include "lease/table.hpp"
#include "model/calls.hpp"
#include "plan/placement.hpp"
#include "plan/rate_limit.hpp"

namespace yado::control {

using CallId = std::uint64_t;
using AskId = std::uint64_t;

struct Persist {
  Record record;
};
struct Call {
  CallId id;
  HostId host;
  Endpoint agent;
  AgentCall call;
  nanoseconds limit;  ///< after which the shell reports timed_out
};
/// Somebody's question is answered: a gate's Ask, or a person's deploy or move.
struct Answer {
  AskId ask;
  Result<Route> route;
  bool fenced;  ///< the old owner can certainly not act any more
};
/// No heart-beat for longer than usual: is the host silent, or only its agent? One SYN to the agent's port, answered by
/// host_probed().
struct ProbeHost {
  HostId host;
  Endpoint agent;
  nanoseconds limit;
};
enum class ProbeAnswer {
  none,
  listening,  ///< its kernel lives, and its agent has the port: slow, or frozen
  refused,    ///< its kernel lives, its agent does not
};
/// The route table changed: push it to every gate.
struct PushRoutes {};
struct Emit {
  Event event;
};

using Action = std::variant<Persist, Call, ProbeHost, Answer, PushRoutes, Emit>;

struct Settings {
  milliseconds heartbeat{200};    ///< the pace agents are told to keep
  milliseconds reconnect{2'000};  ///< control started anew: by then every living agent has tried again (they pause 1 s)
  std::size_t image_copies = 2;  ///< hosts that must hold an image, with its bases, before it counts as acknowledged; from two on it must outlive any one host
  /// Images of a chain at most: instead of one more delta all is saved. A restore opens all of them, and what is superseded in them takes room on every holder.
  std::size_t chain_images = 8;
  std::size_t merge_images = 4;  ///< images of a chain that are left as they are; of a longer one the newest is merged with its bases
};

/// Answer to a heart-beat: what stands on that host and should not.
struct HeartbeatReply {
  std::vector<StopCall> retire;
  std::vector<DropImageCall> drop;
  std::vector<InstanceId> expected;  ///< of moves to it that are under way
};

/// A workload as people see it (`yado ps`).
struct WorkloadView {
  Record record;
  RouteState state;
  std::set<HostId> image_holders;
  bool image_redundant;  ///< it can be raised from whichever one host dies
  std::optional<InstanceReport> standby;
  HostId standby_host;
  std::string note;  ///< why it is not as wanted, if it is not
};

class ControlCore {
 public:
  explicit ControlCore(Settings settings) : settings_(settings) {}

  /// Start-up: everything the store holds. Leases are assumed to have been renewed just before control died.
  void recover(std::vector<Record> records, Instant now);

  // People.
  void deploy(AskId ask, WorkloadSpec spec, Instant now);
  Status stop(const WorkloadId& id, Instant now);
  Status remove(const WorkloadId& id, Instant now);
  /// Move to `host` (or to the best one).
  void move(AskId ask, const WorkloadId& id, std::optional<HostId> host, Instant now);
  /// A VM with split memory goes on on another host (`wish`, or the best one) while it runs: its pages go to the servers first, then it stands
  /// still for a moment.
  /// Whatever fails, it goes on where it was, or, if its host dies meanwhile, from its last image. With `split` its memory is kept so from then on.
  void move_live(AskId ask, const WorkloadId& id, const std::optional<HostId>& wish, std::optional<Split> split, Instant now);
  /// Move to `host`, from the current image. Of a VM with split memory, which is kept as `split` says from then on (of others without meaning), that is refused while it cannot be had there.
  void restore(AskId ask, const WorkloadId& id, std::optional<HostId> host, std::optional<Split> split, Instant now);
  /// A second VM, `spec`, from the current image of `origin`, which goes on as it is. It begins there or not at all, also later, until it has an image of its own.
  void clone(AskId ask, const WorkloadId& origin, WorkloadSpec spec, std::optional<HostId> host, Instant now);
  /// The same as restore(), of the VM as it runs, answered when its memory lies so. After an error it is to be kept as before.
  void resplit(AskId ask, const WorkloadId& id, const Split& split, Instant now);
  /// Take a new ready image now. `changes`: only what changed since the current one, if that is of this owner and no chain of chain_images;
  /// its copies are made first. Else all, and the event says why. `conflict` when no such image is kept of it.
  enum class Extent { all, changes };
  /// `bytes_per_second`: what each host writes for it at most, 0: as the spec says; only of a VM with split memory.
  Status renew_image(const WorkloadId& id, Extent extent, Instant now, std::uint64_t bytes_per_second = 0);

  // Gates.
  void ask(AskId ask, const WorkloadId& id, Epoch observed, Evidence evidence, const HostId& suspect, Instant now);
  /// `gate` has not been asked for the workload's lifetime (or has been asked again since it said so). It is put to
  /// sleep when every gate that is connected says so.
  void idle(const std::string& gate, const WorkloadId& id, Epoch observed, bool is_idle, Instant now);
  /// The gates whose route streams are open.
  void gates(std::set<std::string> connected);  ///< and who is left may be idle

  // Agents.
  HeartbeatReply heartbeat(const HostReport& report, Instant now);
  /// `how`: for people.
  void instance_exited(const HostId& host, const InstanceId& instance, const WorkloadId& id, Instant now, const std::string& how = {});
  /// A supervisor asks for its lease through its agent. Only the current owner of the current epoch gets one.
  Result<milliseconds> renew(const WorkloadId& id, const InstanceId& instance, Epoch epoch, Instant now);
  void call_done(CallId id, const Result<CallReply>& result, Instant now);

  void host_probed(const HostId& host, ProbeAnswer answer, Instant now);

  void tick(Instant now);
  Instant next_deadline() const;  ///< may have passed: then at once
  std::vector<Action> take() { return std::exchange(actions_, {}); }

  RouteTable routes() const;
  std::vector<WorkloadView> workloads() const;
  struct HostSummary {
    HostReport report;
    bool alive;
    Instant last_heard;
  };
  std::vector<HostSummary> hosts() const;
  const Settings& settings() const { return settings_; }

 private:
  /// What a call brought about and a report that left before its answer does not know yet.
  struct Effect {
    std::uint64_t sequence;
    std::optional<InstanceReport> instance;
    std::optional<ImageReport> image;
  };

  enum class Voice {
    heard,
    asked,       ///< late: a probe is under way
    agent_down,  ///< its kernel refuses: instances go on under their supervisors, nothing can be asked of it
    silent,
  };

  struct Host {
    HostReport report;
    detect::HeartbeatDetector detector;
    Voice voice = Voice::heard;
    int late = 0;             ///< probes in a row that found an agent which says nothing
    Instant agent_down_since{};
    Instant next_probe{};     ///< while `asked` and not waiting for an answer, or `agent_down`
    std::vector<Effect> effects;
  };

  /// One transfer of the right to run, from the grant until an owner answers or nobody is left to try.
  struct OwnerOperation {
    Evidence evidence = Evidence::requested;
    HostId suspect;               ///< not tried, unless nobody else has the memory of a VM
    std::optional<HostId> only;   ///< a person named the host …
    AskId only_ask = 0;           ///< … by this
    std::optional<Epoch> replaces = {};  ///< the owner that was up: only what it left frozen goes on with its memory
    Instant not_before{};         ///< the fence: nobody is raised earlier
    bool fenced = false;
    CallId call = 0;              ///< the raise under way
    Instant look_again{};         ///< while it is not known who could; max: when a host was heard or found silent
    struct Try {
      HostId host;
      std::vector<MemoryHost> with;  ///< its memory hosts, those with shares among them
      bool from_image;
    };
    std::vector<Try> tried;
    std::string last_error;
  };

  /// Builds, copies, standbys and merges: at most one of each kind per workload.
  struct SideOperation {
    CallId call = 0;
    InstanceId instance;
    ImageId image;
    Instant not_before{};
    int failures = 0;
    std::string why_whole;  ///< of an image that was to be a delta
  };

  /// A live move, from the wish until its raise on the other host is answered. Not kept by the store: after a restart of control the
  /// guest is raised where it stands frozen, or found where it went.
  struct Migration {
    enum class Step { wait, spread, seal, pull_ahead, expect, hand_over, pull, raise } step = Step::wait;
    AskId ask = 0;
    HostId from, to;     ///< `to`: nobody, once it came to nothing
    InstanceId left;     ///< at `from`
    Epoch left_epoch;    ///< its
    ImageId image = {};  ///< devices and disks, once it was handed over
    InstanceId expected = {};  ///< what it will be called there; empty: nothing is ready for it
    WorkloadSpec spec;   ///< as it shall be there
    std::vector<ImageId> ahead = {};  ///< what was written to its disks before, the oldest first; the last one may be under way
    std::uint64_t ahead_bytes = 0;    ///< of the last one
    Instant pulled_since{};           ///< it
    double bytes_per_second = 0;      ///< of the fastest of them, from host to host
    bool last_try = false;            ///< it was not handed over once, because of its disks
    std::optional<ImageId> goes_on_from = {};  ///< what a delta of it could be of
    std::uint64_t most_disk_bytes() const;
  };

  struct Workload {
    Record record;
    std::optional<Migration> migration;
    std::optional<OwnerOperation> owner;
    CallId inspection = 0;
    std::vector<AskId> waiting;
    Epoch seen;  ///< the highest that a gate or a host has spoken of: gates' own grants while control was down
    SideOperation image, standby, memory, merge;
    std::pair<HostId, std::uint64_t> merge_heard;  ///< only later reports of this host know what the last merge there came to
    struct Resplit {
      AskId ask;
      Split before;
    };
    std::optional<Resplit> resplit;    ///< a person waits for it
    bool restarted_in_raise = false;   ///< control was, and whether the raise was carried out is not known
    bool renew_image = false;
    bool renew_delta = false;  ///< by what changed since
    std::uint64_t renew_bytes_per_second = 0;  ///< that each host writes for it at most; 0: as the spec says
    bool image_acknowledged = false;
    Instant image_since{};  ///< it was said to be complete; who reported before does not know its share yet
    bool last_fenced = false;          ///< how the last transfer ended, for those who ask late
    std::uint64_t owner_sequence = 0;  ///< reports of the owner's host with a higher number know the owner
    plan::RateLimit limit;
    Instant raise_not_before{};  ///< after everything failed
    int raise_failures = 0;
    std::string note;
    std::set<std::string> idle_gates;
  };

  struct Pending {
    enum class What { raise, inspect, build, pull, prepare, stop_owner, sleep, resplit, spread, seal, pull_ahead, expect, hand_over, pull_handover, merge } what;
    WorkloadId workload;
    HostId host;
    InstanceId instance;
    ImageId image;
    Epoch epoch;
    std::uint64_t revision = 0;
    std::vector<MemoryHost> memory_hosts = {};
    std::vector<ImageId> copied = {};  ///< beside `image`
  };

  // clones.cpp
  static bool needs_images_of(const Record& record, const WorkloadId& origin);
  std::optional<WorkloadId> clone_of(const WorkloadId& origin) const;
  bool copies_its_image(const Workload& workload) const;

  // image_copies.cpp
  /// Of the memory that was saved with image `of`: what `saver` kept of it.
  struct Share {
    ImageId id, of;
    HostId saver;
  };
  struct Copy {
    HostId to;
    PullCall call;
  };
  bool has_sound(const Record& record, const HostId& host, const ImageId& image) const;
  std::set<HostId> holders(const Workload& workload) const;
  std::vector<Share> shares_of(const ImageId& image) const;
  std::vector<Share> shares_of(const Workload& workload) const;
  bool can_be_asked(const Workload& workload, const Share& share) const;
  std::vector<Share> missing(const Workload& workload, std::vector<Share> shares, const HostId& holder, const HostId& lost) const;
  std::optional<HostId> depends_on(const Workload& workload) const;
  bool redundant(const Workload& workload) const;
  std::vector<PullCall::Member> members_of(const Workload& workload, const ImageId& image) const;
  std::vector<PullCall::Member> before_image(const Workload& workload, const Endpoint& holder) const;
  Result<std::optional<Copy>> copy_wanted(const Workload& workload, std::vector<HostId> keepers) const;
  void remember_copied(const Workload& workload, const Pending& pending, const CallReply& reply);

  // migration.cpp
  void continue_migration(Workload& workload, Instant now);
  void spread(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now);
  void seal(Workload& workload);
  void sealed(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now);
  void ahead_pulled(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now);
  void expect(Workload& workload);
  void expected(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now);
  void stay(Workload& workload, const Pending& pending, const Error& why, Instant now);
  void hand_over(Workload& workload);
  void handed_over(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now);
  void handover_pulled(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now);
  void end_migration(Workload& workload, const Error& why);
  void end_left(Workload& workload);
  bool stands_for_a_move(const Workload& workload, const InstanceReport& instance) const;

  Workload* find(const WorkloadId& id);
  bool alive(const HostId& host) const;
  bool braked() const;
  void persist(const Workload& workload) { actions_.push_back(Persist{workload.record}); }
  CallId call(AgentCall what, nanoseconds limit, Pending pending);
  void refuse_not_asked(Instant now);
  void emit(std::string kind, const Workload& workload, const HostId& host,
            std::map<std::string, std::string> fields = {});
  Route route_of(const Workload& workload) const;
  RouteState route_state(const Workload& workload) const;
  void answer(AskId ask, Result<Route> route, bool fenced) { actions_.push_back(Answer{ask, std::move(route), fenced}); }
  void answer_all(Workload& workload, const Result<Route>& route, bool fenced);
  std::vector<plan::HostView> views(const Workload& workload) const;
  const InstanceReport* standby_of(const Workload& workload) const;
  const InstanceReport* owner_of(const Workload& workload) const;

  void begin_owner(Workload& workload, Evidence evidence, const HostId& suspect, std::optional<HostId> only, Instant now);
  void grant(Workload& workload, Instant now);
  struct RaisePlan {
    WorkloadSpec spec;
    std::optional<ImageId> image;
    bool moves;            ///< it goes on with what was handed over, or not at all
    std::string why_anew;  ///< without an image
  };
  RaisePlan plan_raise(const Workload& workload, const HostId& host) const;
  bool goes_on(const Workload& workload, const std::vector<plan::HostView>& views, const HostId& host) const;
  std::optional<std::vector<HostId>> ranking_of_owner(const Workload& workload, Instant now) const;
  void continue_owner(Workload& workload, Instant now);
  void raise_done(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now);
  void owner_is_up(Workload& workload, const HostId& host, const InstanceReport& instance, std::uint64_t sequence,
                   Instant now);
  void give_up(Workload& workload, Error error, Instant now);
  void owner_lost(Workload& workload, Evidence evidence, Instant now, const std::string& how = {});
  /// Counts a relocation, unless there were too many.
  Status admit_relocation(Workload& workload, Instant now);
  void reconcile(Workload& workload, Instant now);
  void drop_unwanted(Workload& workload);
  bool takes_images(const HostId& host, const WorkloadSpec& spec) const;
  static bool checkpoints_owner(const WorkloadSpec& spec);
  WorkloadSpec with_memory_hosts(WorkloadSpec spec, const HostId& main, const HostId& suspect) const;
  Result<WorkloadSpec> from_image(const Workload& workload, WorkloadSpec spec, const HostId& main, const HostId& suspect) const;
  Status check_restore(const Workload& workload, const WorkloadSpec& wanted, const HostId& host) const;
  bool go_back(Workload& workload);
  Result<ImageId> base_of_next(const Workload& workload) const;
  std::vector<HostAddress> agents_alive() const;
  Status check_resplit(const Workload& workload, const Split& split) const;
  void reconcile_memory(Workload& workload, Instant now);
  void resplit_done(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now);
  void end_resplit(Workload& workload, const Status& status);
  void reconcile_image(Workload& workload, Instant now);
  void reconcile_standby(Workload& workload, Instant now);
  // merging.cpp
  bool shares_known(const Workload& workload, const ImageId& image) const;
  std::optional<HostId> host_with_share(const ImageId& image, bool (*done)(const ImageReport&)) const;
  std::optional<std::vector<PullCall::Member>> elsewhere(const Workload& workload, const ImageId& image, const HostId& host, bool bases) const;
  void shorten_chain(Workload& workload);
  void reconcile_chain(Workload& workload, Instant now);
  void merge_done(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now);

  void image_done(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now);
  void standby_done(Workload& workload, const Pending& pending, const Result<CallReply>& result, Instant now);
  void judge_instance(const HostReport& report, const InstanceReport& instance, HeartbeatReply& reply, Instant now);
  static bool stale(const Record& record, const ImageReport& image);
  static bool keeps(const Workload& workload, const ImageReport& image);
  void judge_image(const HostId& host, const ImageReport& image, HeartbeatReply& reply);
  void inspected(Workload& workload, const Result<CallReply>& result, Instant now);
  void check_hosts(Instant now);
  void probe_host(const HostId& id, Host& host, Instant now);
  void host_is_silent(const HostId& id, Instant now);
  void sleep_if_idle(Workload& workload);
  void host_lost(const HostId& host, const std::string& why, Instant now);
  static void apply(const Effect& effect, HostReport& report);
  void remember_effect(const HostId& host, Effect effect);

  Settings settings_;
  std::map<WorkloadId, Workload> workloads_;
  std::map<HostId, Host> hosts_;
  Instant all_known_at_{};  ///< every agent that lives has spoken since control was started
  std::set<std::string> gates_;
  std::map<CallId, Pending> pending_;
  std::vector<CallId> not_asked_;  ///< of them: their hosts did not answer then
  lease::Table leases_;
  CallId last_call_ = 0;
  std::vector<Action> actions_;
};

}  // namespace yado::control
