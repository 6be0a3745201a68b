#pragma once
// A pipelined connection to a memory server that is made anew when it breaks, and what was not answered repeated.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/time.hpp"
#include "pager/answer_times.hpp"
#include "pager/channel.hpp"
#include "pager/page_server.hpp"
#include "wire/link.hpp"
#include "wire/tls.hpp"

namespace yado::pager {

struct LinkOptions {
  Hello hello;                      ///< its generation counts up with every connection
  nanoseconds patience = 5s;        ///< with silence while something is waited for; then once more to be connected again
  const wire::Identity* identity = nullptr;  ///< for TLS; only used by make()
  std::optional<std::uint64_t> instance;     ///< of the session that a reader or an heir expects; any other one is refused
  std::optional<nanoseconds> open_within = {};  ///< the first connection; none: `patience`
};

/// One thread: that of `executor`. Dead, for good, when nobody listens there any more (proof), when it has lost the pages
/// (another instance) or wants us no more, when it cannot be reached for `patience`, or when it breaks the protocol five
/// times without a good answer in between. `blocks` must outlive the executor's context.
class ServerLink : public PageServer, public std::enable_shared_from_this<ServerLink> {
 public:
  static Result<std::shared_ptr<ServerLink>> make(boost::asio::any_io_executor executor, BlockPool& blocks,
                                                  const ServerAddress& address, const LinkOptions& options);

  /// The first connection: its failure is not repaired.
  static boost::asio::awaitable<Result<Welcome>> open(std::shared_ptr<ServerLink> self);
  void on_dead(std::function<void(const Error&)> action) { on_dead_ = std::move(action); }
  /// Something is waited for, and nothing was heard for longer than this server's answers take; again and again until it answers or is dead.
  void on_silent(std::function<void()> action) { on_silent_ = std::move(action); }
  /// It is so now.
  bool silent() const;
  /// When nothing was heard any more; now, if nothing is waited for.
  Instant silent_since() const;
  /// When it last answered after having been silent.
  Instant silent_until() const { return silent_until_; }
  /// How long a silence must be for that.
  nanoseconds suspicious() const { return answer_times_.suspicious(); }
  /// Dead from now on: whoever can do without it need not wait for its patience to end. It may be alive and come to itself: what it then has
  /// is old. Of a dead one: nothing happens.
  void give_up(const Error& why);
  /// Ends the connection; requests under way get `canceled`, on_dead is not called.
  void close();

  void get(std::vector<PageRun> pages, Got got) override;
  void put(PutBatch batch, Done done) override;
  void drop(std::vector<PageRun> pages, Done done) override;
  bool alive() const override { return !dead_; }
  bool connected() const override { return channel_ != nullptr; }
  std::uint64_t quota_pages() const override { return hello_.quota_pages; }
  const std::string& name() const override { return target_->where; }
  void distrust(const Error& why) override;

  // The rest of the protocol, as it stands in docs/formats/page_protocol.md. Runs ascending, any number of them.
  template <class T>
  using Told = std::function<void(Result<T>)>;
  void stat(Told<SessionStats> told);
  void list(PageNumber from, Told<std::vector<KindRun>> told);
  void save(const SaveRequest& save, Told<Saved> told);
  void fix(const std::string& name, Done done);
  void finish(const std::string& name, const std::vector<PageRun>& owned, Told<Saved> told);
  void keep(const std::string& name, Done done);
  void abandon(const std::string& name, Done done);
  void load(const std::vector<std::string>& names, const std::vector<PageRun>& wanted, Told<std::uint64_t> told);
  /// At most most_runs. `instance` is the other link's. Both servers have the pages then.
  void move(const std::vector<PageRun>& pages, const ServerAddress& to, std::uint64_t instance, Told<std::uint64_t> told);
  /// What the session may hold from now on: more, or less than it may now, but not than it does. Error no_space: it stays as it was.
  void set_quota(std::uint64_t pages, Done done);
  void end(Done done);
  /// A reader's, or an owner's: its session is inherited under `epoch` by process `life`, on a connection that is made anew for it; told when it
  /// is, in front of what a reader wanted to drop. Somebody else was faster: the link dies of `stale_epoch`.
  void inherit(std::uint64_t epoch, std::uint32_t life, Told<SessionStats> told);

  /// Of the session in the server's memory: known once open.
  std::uint64_t instance() const { return instance_.value_or(0); }
  /// Any other request; the answer is its frame, or the error that an ERROR frame names.
  using Answer = std::function<void(Result<Frame>)>;
  void request(Operation operation, std::vector<std::byte> head, Answer answer, std::uint16_t flags = 0);

  struct Traffic {
    std::uint64_t bytes_sent = 0, bytes_received = 0, reconnections = 0;
  };
  const Traffic& traffic() const { return traffic_; }

 private:
  struct Request {
    Operation operation;
    std::uint16_t flags;
    std::vector<std::byte> head;
    std::vector<Bytes> data;
    std::shared_ptr<const void> hold;
    Answer answer;
    Instant sent_at;
  };
  ServerLink(boost::asio::any_io_executor executor, BlockPool& blocks, std::shared_ptr<const wire::Target> target,
             const LinkOptions& options);

  void request_done(Operation operation, std::vector<std::byte> head, Done done);
  template <class T, class Parse>
  void request_told(Operation operation, std::vector<std::byte> head, Operation expected, Parse parse, Told<T> told,
                    std::uint16_t flags = 0);
  template <class T, class Make, class Parse>
  void request_runs(Operation operation, const std::vector<PageRun>& runs, Make make, Parse parse, Told<T> told);

  static boost::asio::awaitable<Result<Welcome>> connect(std::shared_ptr<ServerLink> self, nanoseconds limit);
  static boost::asio::awaitable<void> live(std::shared_ptr<ServerLink> self);
  static boost::asio::awaitable<Error> read_answers(std::shared_ptr<ServerLink> self);
  static boost::asio::awaitable<void> watch(std::shared_ptr<ServerLink> self);
  Status take(const Frame& frame);
  std::map<std::uint64_t, Request>::const_iterator oldest_in_order() const;
  void add(Request request);
  void send(std::uint64_t id, const Request& request);
  void die(const Error& why);
  void disconnect();

  boost::asio::any_io_executor executor_;
  BlockPool& blocks_;
  std::shared_ptr<const wire::Target> target_;
  Hello hello_;
  nanoseconds patience_, open_within_;
  std::shared_ptr<Channel> channel_;      ///< while connected
  std::optional<std::uint64_t> instance_;
  std::uint64_t last_id_ = 1;             ///< 1 is HELLO's, on every connection
  std::map<std::uint64_t, Request> under_way_;
  boost::asio::steady_timer watch_timer_;
  int failures_in_a_row_ = 0;
  Instant heard_at_{};                    ///< the last answer, or connection
  Instant silent_until_{};
  std::optional<Instant> broken_since_;   ///< when it first broke after its last answer
  AnswerTimes answer_times_;
  bool dead_ = false, watching_ = false;
  std::optional<Error> distrusted_;
  std::function<void(const Error&)> on_dead_;
  std::function<void()> on_silent_;
  Traffic traffic_;
  std::vector<std::pair<std::vector<PageRun>, Done>> kept_back_;  ///< a reader's drops
};

}  // namespace yado::pager
