#include "pager/server_link.hpp"

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "os/clock.hpp"

namespace yado::pager {
namespace asio = boost::asio;
namespace {

constexpr std::uint64_t hello_id = 1;
constexpr int most_failures_in_a_row = 5;
/// Between two tries to connect again: nobody says when a broken path is whole.
constexpr auto first_pause = std::chrono::milliseconds(5);

Result<wire::Target> target_of(const ServerAddress& address, const wire::Identity* identity) {
  wire::Target target;
  target.where = address.text();
  if (!address.unix_path.empty()) {
    target.endpoint = asio::local::stream_protocol::endpoint(address.unix_path);
    return target;
  }
  boost::system::error_code error;
  const auto ip = asio::ip::make_address(address.address, error);
  if (error) return fail(Errc::invalid_argument, "\"{}\" is no numeric address", address.address);
  if (identity == nullptr && !ip.is_loopback())
    return fail(Errc::invalid_argument, "{}: off this host pages travel by mutual TLS only, and there is no identity", target.where);
  target.endpoint = asio::ip::tcp::endpoint(ip, address.port);
  target.expected_peer = address.expected_peer;
  if (identity != nullptr) {
    YADO_ASSIGN(target.tls, wire::client_context(*identity), "memory server");
  }
  return target;
}

/// By waiting. Not so when nobody listens there, it is another instance, or it does not want us.
bool may_become_better(Errc code) {
  return code == Errc::unavailable || code == Errc::timed_out || code == Errc::corrupt || code == Errc::io ||
         code == Errc::rate_limited;
}

/// A PAGES answer must speak of exactly the pages that were asked for.
Result<Batch> answer_about(const std::vector<PageRun>& asked, const Frame& frame) {
  if (frame.header.operation != Operation::pages) return fail(Errc::corrupt, "{} instead of PAGES", name_of(frame.header.operation));
  YADO_ASSIGN(Batch batch, parse_batch(frame.body, BatchUse::answer), "PAGES");
  std::vector<PageRun> said;
  for (const KindRun& run : batch.runs)
    if (!said.empty() && said.back().first + said.back().pages == run.first)
      said.back().pages += run.pages;
    else
      said.push_back({run.first, run.pages});
  if (said != asked) return fail(Errc::corrupt, "PAGES is about other pages than were asked for");
  return batch;
}

}  // namespace

ServerLink::ServerLink(asio::any_io_executor executor, BlockPool& blocks, std::shared_ptr<const wire::Target> target,
                       const LinkOptions& options)
    : executor_(executor), blocks_(blocks), target_(std::move(target)), hello_(options.hello),
      patience_(options.patience), open_within_(options.open_within.value_or(options.patience)), instance_(options.instance), watch_timer_(executor) {}

Result<std::shared_ptr<ServerLink>> ServerLink::make(asio::any_io_executor executor, BlockPool& blocks,
                                                     const ServerAddress& address, const LinkOptions& options) {
  YADO_ASSIGN(wire::Target target, target_of(address, options.identity), "memory server");
  return std::shared_ptr<ServerLink>(
      new ServerLink(std::move(executor), blocks, std::make_shared<const wire::Target>(std::move(target)), options));
}

asio::awaitable<Result<Welcome>> ServerLink::open(std::shared_ptr<ServerLink> self) {
  auto welcome = co_await connect(self, self->open_within_);
  if (!welcome) {
    self->dead_ = true;
    co_return context(welcome.error(), fmt::format("memory server {}", self->name()));
  }
  asio::co_spawn(self->executor_, live(self), asio::detached);
  co_return welcome;
}

asio::awaitable<Result<Welcome>> ServerLink::connect(std::shared_ptr<ServerLink> self, nanoseconds limit) {
  wire::Deadline deadline(self->executor_);
  deadline.set(limit);
  auto opened = co_await wire::Link::open(self->executor_, self->target_, deadline);
  if (!opened) {
    deadline.guard(nullptr);
    co_return std::unexpected(opened.error());
  }
  const std::shared_ptr<wire::Link> link(std::move(*opened));
  deadline.guard(&link->stream());
  const std::shared_ptr<wire::Stream> stream(link, &link->stream());
  auto channel = std::make_shared<Channel>(stream, self->executor_, self->blocks_);
  asio::co_spawn(self->executor_, Channel::write_loop(channel), asio::detached);
  if (self->hello_.role == Role::owner || self->hello_.role == Role::heir) ++self->hello_.generation;
  const Hello said = self->hello_;
  channel->send(Operation::hello, hello_id, make_hello(said));
  auto frame = co_await Channel::receive(channel);
  deadline.guard(nullptr);
  const auto refuse = [&](const Error& error) -> Result<Welcome> {
    channel->close();
    return std::unexpected(error);
  };
  if (deadline.passed()) co_return refuse({Errc::timed_out, "no answer to HELLO within the time limit"});
  if (!frame) co_return refuse(frame.error());
  if (frame->header.operation == Operation::error) co_return refuse(parse_error(frame->body));
  if (frame->header.operation != Operation::welcome || frame->header.id != hello_id)
    co_return refuse({Errc::corrupt, fmt::format("{} instead of WELCOME", name_of(frame->header.operation))});
  auto welcome = parse_welcome(frame->body);
  if (!welcome) co_return refuse(welcome.error());
  if (self->dead_) co_return refuse({Errc::canceled, "closed"});  // meanwhile
  if (self->hello_ != said) co_return refuse({Errc::unavailable, "it was welcomed as what it is no more"});
  if (self->instance_ && *self->instance_ != welcome->instance)
    co_return refuse({Errc::not_owner, "it was started anew, its pages are gone"});
  self->instance_ = welcome->instance;
  if (self->hello_.role == Role::heir) self->hello_.role = Role::owner;  // what was inherited is its own
  self->channel_ = std::move(channel);
  const Instant now = self->heard_at_ = os::now();
  for (auto& [id, request] : self->under_way_) {
    request.sent_at = now;
    self->send(id, request);
  }
  co_return welcome;
}

/// From the first connection to the end.
asio::awaitable<void> ServerLink::live(std::shared_ptr<ServerLink> self) {
  for (;;) {
    Error why = co_await read_answers(self);
    if (self->dead_) co_return;
    self->disconnect();
    if (!self->broken_since_) self->broken_since_ = os::now();
    const Instant give_up = *self->broken_since_ + self->patience_;
    auto pause = first_pause;
    for (;;) {
      const nanoseconds left = give_up - os::now();
      const bool silence = why.code == Errc::unavailable || why.code == Errc::timed_out;
      if ((++self->failures_in_a_row_ > most_failures_in_a_row && !silence) || left <= nanoseconds(0)) co_return self->die(why);
      auto again = co_await connect(self, left);
      if (self->dead_) co_return;
      if (again) break;
      why = again.error();
      if (!may_become_better(why.code)) co_return self->die(why);
      asio::steady_timer timer(self->executor_, pause);
      co_await timer.async_wait(asio::as_tuple(asio::use_awaitable));
      if (self->dead_) co_return;
      pause = std::min<decltype(pause)>(pause * 2, std::chrono::milliseconds(500));
    }
    ++self->traffic_.reconnections;
    // A server that welcomes and then breaks off, again and again, must not keep a guest waiting for ever.
    if (self->under_way_.empty()) self->broken_since_.reset();
  }
}

/// Until the connection is of no use any more; says why.
asio::awaitable<Error> ServerLink::read_answers(std::shared_ptr<ServerLink> self) {
  const std::shared_ptr<Channel> channel = self->channel_;
  for (;;) {
    auto frame = co_await Channel::receive(channel);
    if (self->distrusted_) co_return *std::exchange(self->distrusted_, std::nullopt);
    if (!frame) co_return frame.error();
    self->traffic_.bytes_received += header_bytes + frame->body.size();
    if (auto taken = self->take(*frame); !taken) co_return taken.error();
  }
}

Status ServerLink::take(const Frame& frame) {
  const std::uint64_t id = frame.header.id;
  if (id == 0 && frame.header.operation == Operation::error) return std::unexpected(parse_error(frame.body));
  const auto found = under_way_.find(id);
  if (found == under_way_.end())
    return fail(Errc::corrupt, "{} answers request {}, which is not under way", name_of(frame.header.operation), id);
  if (const auto first = oldest_in_order(); !takes_long(found->second.operation) && first != found)
    return fail(Errc::corrupt, "request {} is answered before request {}", id, first->first);
  const int failures = std::exchange(failures_in_a_row_, 0);
  const bool was_silent = silent();
  heard_at_ = os::now();
  if (was_silent) silent_until_ = heard_at_;
  if (!takes_long(found->second.operation)) answer_times_.add(heard_at_ - found->second.sent_at);
  broken_since_.reset();
  const Answer answer = std::move(found->second.answer);
  under_way_.erase(found);
  if (frame.header.operation == Operation::error)
    answer(std::unexpected(parse_error(frame.body)));
  else
    answer(frame);
  if (distrusted_) failures_in_a_row_ = failures;  // that was none
  return {};
}

std::map<std::uint64_t, ServerLink::Request>::const_iterator ServerLink::oldest_in_order() const {
  return std::ranges::find_if(under_way_, [](const auto& entry) { return !takes_long(entry.second.operation); });
}

Instant ServerLink::silent_since() const {
  const auto oldest = oldest_in_order();
  return oldest == under_way_.end() ? os::now() : std::max(oldest->second.sent_at, heard_at_);
}

bool ServerLink::silent() const { return os::now() - silent_since() >= suspicious(); }

/// Says when a silence means something, and breaks the connection after one of `patience`.
asio::awaitable<void> ServerLink::watch(std::shared_ptr<ServerLink> self) {
  while (!self->under_way_.empty() && !self->dead_) {
    const nanoseconds silence = os::now() - self->silent_since();
    if (silence >= self->patience_) {
      self->distrust({Errc::timed_out, "it does not answer"});
      self->heard_at_ = os::now();
      continue;
    }
    if (self->silent() && self->on_silent_) self->on_silent_();
    if (self->dead_) break;
    nanoseconds left = self->patience_ - silence;
    if (self->oldest_in_order() == self->under_way_.end())
      left = self->patience_ / 2;
    else if (const nanoseconds suspicious = self->suspicious(); self->on_silent_)
      left = std::min(left, silence < suspicious ? suspicious - silence : suspicious / 4);
    self->watch_timer_.expires_after(left);
    co_await self->watch_timer_.async_wait(asio::as_tuple(asio::use_awaitable));
    // Long work says nothing meanwhile: whether its server lives, a small question tells.
    if (!self->dead_ && !self->under_way_.empty() && self->oldest_in_order() == self->under_way_.end())
      self->request(Operation::stat, {}, [](const Result<Frame>&) {});
  }
  self->watching_ = false;
}

void ServerLink::distrust(const Error& why) {
  if (!channel_) return;
  distrusted_ = why;
  channel_->close();
}

void ServerLink::disconnect() {
  if (channel_) channel_->close();
  channel_.reset();
}

void ServerLink::die(const Error& why) {
  dead_ = true;
  disconnect();
  watch_timer_.cancel();
  const Error error{why.code, fmt::format("memory server {}: {}", name(), why.message)};
  // First everybody may learn that it is dead, then what was asked of it is asked elsewhere.
  if (on_dead_) on_dead_(error);
  for (auto& [id, request] : std::exchange(under_way_, {})) request.answer(std::unexpected(error));
}

void ServerLink::give_up(const Error& why) {
  if (!dead_) die(why);
}

void ServerLink::close() {
  dead_ = true;
  disconnect();
  watch_timer_.cancel();
  for (auto& [id, request] : std::exchange(under_way_, {})) request.answer(fail(Errc::canceled, "closed"));
}

void ServerLink::add(Request request) {
  if (dead_) {
    asio::post(executor_, [self = shared_from_this(), answer = std::move(request.answer)] {
      answer(fail(Errc::unavailable, "memory server {} is dead", self->name()));
    });
    return;
  }
  request.sent_at = os::now();
  const std::uint64_t id = ++last_id_;
  const Request& kept = under_way_.emplace(id, std::move(request)).first->second;
  if (channel_) send(id, kept);
  if (!std::exchange(watching_, true)) asio::co_spawn(executor_, watch(shared_from_this()), asio::detached);
}

void ServerLink::send(std::uint64_t id, const Request& request) {
  traffic_.bytes_sent += header_bytes + request.head.size();
  for (const Bytes part : request.data) traffic_.bytes_sent += part.size();
  channel_->send(request.operation, id, request.head, request.data, request.hold, request.flags);
}

void ServerLink::request(Operation operation, std::vector<std::byte> head, Answer answer, std::uint16_t flags) {
  add({operation, flags, std::move(head), {}, nullptr, std::move(answer), {}});
}

void ServerLink::get(std::vector<PageRun> pages, Got got) {
  auto head = make_batch(with_kind(pages, PageKind::wanted));
  request(Operation::get, std::move(head), [this, pages = std::move(pages), got = std::move(got)](Result<Frame> frame) {
    if (!frame) return got(std::unexpected(frame.error()));
    auto batch = answer_about(pages, *frame);
    if (!batch) {
      distrust(batch.error());
      return got(std::unexpected(batch.error()));
    }
    got(std::pair(std::move(*batch), std::move(*frame)));
  });
}

void ServerLink::put(PutBatch batch, Done done) {
  std::vector<KindRun> runs;
  std::vector<Bytes> data;
  for (std::size_t i = 0; i < batch.pages.size(); ++i) {
    const std::byte* content = batch.contents[i];
    append(runs, batch.pages[i], content == nullptr ? PageKind::zero : PageKind::data);
    if (content == nullptr) continue;
    if (!data.empty() && data.back().data() + data.back().size() == content)
      data.back() = Bytes(data.back().data(), data.back().size() + page_bytes);
    else
      data.emplace_back(content, page_bytes);
  }
  const auto answer = [this, done = std::move(done)](Result<Frame> frame) {
    if (frame && frame->header.operation != Operation::done) {
      frame = fail(Errc::corrupt, "{} instead of DONE", name_of(frame->header.operation));
      distrust(frame.error());
    }
    done(frame ? Status{} : Status(std::unexpected(frame.error())));
  };
  add({Operation::put, batch.unchanged ? flag_unchanged : std::uint16_t{0}, make_batch(runs), std::move(data), std::move(batch.hold), answer, {}});
}

void ServerLink::request_done(Operation operation, std::vector<std::byte> head, Done done) {
  request(operation, std::move(head), [done = std::move(done)](const Result<Frame>& frame) {
    done(frame ? Status{} : Status(std::unexpected(frame.error())));
  });
}

/// An answer that says something else than was asked for is the server's fault, as with GET.
template <class T, class Parse>
void ServerLink::request_told(Operation operation, std::vector<std::byte> head, Operation expected, Parse parse, Told<T> told,
                              std::uint16_t flags) {
  request(operation, std::move(head), [this, expected, parse, told = std::move(told)](const Result<Frame>& frame) {
    if (!frame) return told(std::unexpected(frame.error()));
    Result<T> answer = frame->header.operation == expected
                           ? parse(frame->body)
                           : fail(Errc::corrupt, "{} instead of {}", name_of(frame->header.operation), name_of(expected));
    if (!answer) distrust(answer.error());
    told(std::move(answer));
  }, flags);
}

/// What is old for an heir must not be found there by the next one, and is what the host before goes on with until it is an heir.
void ServerLink::drop(std::vector<PageRun> pages, Done done) {
  if (hello_.role == Role::reader && !dead_) return kept_back_.emplace_back(std::move(pages), std::move(done)), void();
  request_done(Operation::drop, make_batch(with_kind(pages, PageKind::wanted)), std::move(done));
}

void ServerLink::stat(Told<SessionStats> told) {
  request_told<SessionStats>(Operation::stat, {}, Operation::stats, parse_stats, std::move(told));
}

void ServerLink::list(PageNumber from, Told<std::vector<KindRun>> told) {
  const auto parse = [](Bytes body) -> Result<std::vector<KindRun>> {
    YADO_ASSIGN(Batch batch, parse_batch(body, BatchUse::listing), "PAGES");
    return std::move(batch.runs);
  };
  request_told<std::vector<KindRun>>(Operation::list, make_number(from), Operation::pages, parse, std::move(told));
}

void ServerLink::save(const SaveRequest& save, Told<Saved> told) {
  request_told<Saved>(Operation::save, make_save(save), Operation::done, parse_saved, std::move(told), flags_of(save));
}

void ServerLink::fix(const std::string& name, Done done) { request_done(Operation::fix, make_name(name), std::move(done)); }
void ServerLink::keep(const std::string& name, Done done) { request_done(Operation::keep, make_name(name), std::move(done)); }
void ServerLink::abandon(const std::string& name, Done done) {
  request_done(Operation::abandon, make_name(name), std::move(done));
}
void ServerLink::set_quota(std::uint64_t pages, Done done) {
  request_done(Operation::quota, make_number(pages), [this, pages, done = std::move(done)](const Status& changed) {
    if (changed) hello_.quota_pages = pages;
    done(changed);
  });
}
void ServerLink::end(Done done) { request_done(Operation::end, {}, std::move(done)); }

void ServerLink::inherit(std::uint64_t epoch, std::uint32_t life, Told<SessionStats> told) {
  const bool own = hello_.role != Role::reader;
  if (hello_.role == Role::owner) hello_.from = hello_.epoch;  // its own earlier self
  const std::uint64_t first = std::uint64_t{life} << 32;
  // Begun by this very process a moment ago, it counts on.
  hello_.generation = own && hello_.epoch == epoch ? std::max(first, hello_.generation) : first;
  hello_.epoch = epoch;
  hello_.role = Role::heir;
  distrust({Errc::unavailable, "its session is inherited"});
  stat(std::move(told));  // answered by the connection that is made now
  for (auto& [pages, done] : std::exchange(kept_back_, {})) drop(std::move(pages), std::move(done));
}

/// What fits into one message, and more of them in front of it where needed: the first error of any is the answer.
template <class T, class Make, class Parse>
void ServerLink::request_runs(Operation operation, const std::vector<PageRun>& runs, Make make, Parse parse, Told<T> told) {
  const auto failed = std::make_shared<std::optional<Error>>();
  const auto wanted = with_kind(runs, PageKind::wanted);
  std::size_t at = 0;
  for (; wanted.size() - at > most_runs; at += most_runs) {
    const auto begin = wanted.begin() + static_cast<long>(at);
    request_told<T>(operation, make({begin, begin + most_runs}), Operation::done, parse, [failed](const Result<T>& answer) {
      if (!answer && !*failed) *failed = answer.error();
    }, flag_more);
  }
  request_told<T>(operation, make({wanted.begin() + static_cast<long>(at), wanted.end()}), Operation::done, parse,
                  [failed, told = std::move(told)](Result<T> answer) {
                    if (*failed) return told(std::unexpected(**failed));
                    told(std::move(answer));
                  });
}

void ServerLink::finish(const std::string& name, const std::vector<PageRun>& owned, Told<Saved> told) {
  const auto make = [&](std::vector<KindRun> runs) { return make_finish({std::move(runs), name}); };
  request_runs<Saved>(Operation::finish, owned, make, parse_saved, std::move(told));
}

void ServerLink::load(const std::vector<std::string>& names, const std::vector<PageRun>& wanted, Told<std::uint64_t> told) {
  const auto make = [&](std::vector<KindRun> runs) { return make_load({std::move(runs), names}); };
  request_runs<std::uint64_t>(Operation::load, wanted, make, parse_number, std::move(told));
}

void ServerLink::move(const std::vector<PageRun>& pages, const ServerAddress& to, std::uint64_t instance,
                      Told<std::uint64_t> told) {
  request_told<std::uint64_t>(Operation::move, make_move({with_kind(pages, PageKind::wanted), to, instance}), Operation::done,
                              parse_number, std::move(told));
}

}  // namespace yado::pager
