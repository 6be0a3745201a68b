#include "pager/connection.hpp"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/log.hpp"
#include "os/clock.hpp"
#include "pager/page_move.hpp"

namespace yado::pager {
namespace asio = boost::asio;
namespace {

/// A peer that connects and says nothing holds a descriptor and a buffer; a handshake and HELLO take three round trips.
constexpr auto hello_limit = std::chrono::seconds(10);
/// Answers of a connection that wait to be sent; above it, its requests wait.
constexpr std::size_t most_unsent_bytes = 4_MiB;

/// Brings in what a LOAD left on the disk: in pieces, so that another LOAD need not wait for all of it, and no GET for much of it.
void bring_in(const ServerParts& parts, std::shared_ptr<Session> session, nanoseconds pause) {
  auto timer = std::make_shared<asio::steady_timer>(parts.loader.io, std::chrono::duration_cast<asio::steady_timer::duration>(pause));
  timer->async_wait([&parts, timer, session = std::move(session)](const boost::system::error_code&) mutable {
    const Instant begun = os::now();
    if (!session->bring_in(parts.pace.piece(begun))) return;
    const Instant now = os::now();
    bring_in(parts, std::move(session), parts.pace.pause(now - begun, now));
  });
}

}  // namespace

Connection::Connection(wire::Stream stream, Worker& worker, const ServerParts& parts)
    : stream_(std::make_shared<wire::Stream>(std::move(stream))), worker_(worker), parts_(parts),
      hello_deadline_(worker.io.get_executor()), room_aside_(worker.io, asio::steady_timer::time_point::max()) {}

asio::awaitable<void> Connection::serve(std::shared_ptr<Connection> self, bool tls) {
  self->hello_deadline_.set(hello_limit);
  self->hello_deadline_.guard(self->stream_.get());
  if (const auto error = co_await self->stream_->handshake(asio::ssl::stream_base::server)) {
    if (!self->hello_deadline_.passed()) log::warn("memory server: a peer was refused: {}", self->stream_->explain(error));
    co_return self->stream_->close();
  }
  self->peer_ = tls ? self->stream_->peer_name() : "local";
  self->channel_ = std::make_shared<Channel>(self->stream_, self->worker_.io.get_executor(), self->parts_.blocks);
  asio::co_spawn(self->worker_.io, Channel::write_loop(self->channel_), asio::detached);
  co_await answer_requests(self);
  // What was said last should arrive, but it is not waited for longer than for a HELLO.
  self->hello_deadline_.set(hello_limit);
  self->hello_deadline_.guard(self->stream_.get());
  co_await Channel::drained(self->channel_, 0);
  self->channel_->close();
  for (const auto& [id, move] : std::exchange(self->moves_, {})) move->end();
  for (const auto& [to, link] : std::exchange(self->idle_, {})) link->close();
}

asio::awaitable<void> Connection::answer_requests(std::shared_ptr<Connection> self) {
  std::uint64_t last_id = 0;
  for (;;) {
    auto frame = co_await Channel::receive(self->channel_);
    if (frame && frame->header.id <= last_id)
      frame = fail(Errc::corrupt, "request {} comes after request {}: a repeated or foreign frame", frame->header.id, last_id);
    if (!frame) {
      if (frame.error().code != Errc::unavailable) self->break_off(frame.error());
      co_return;
    }
    last_id = frame->header.id;
    const Operation operation = frame->header.operation;
    if (!self->session_ && operation != Operation::hello)
      co_return self->break_off({Errc::corrupt, "the first request must be HELLO"});
    if (operation == Operation::put || operation == Operation::drop) co_await wait_for_room_aside(self);
    const Status done = self->session_ ? self->answer(*frame) : self->welcome(*frame);
    if (!done) {
      self->refuse(last_id, done.error());
      if (!self->session_) co_return;
    }
    if (self->channel_->unsent_bytes() > most_unsent_bytes) co_await Channel::drained(self->channel_, most_unsent_bytes / 2);
  }
}

/// While much is set aside for a cut, who overwrites waits for the disk.
asio::awaitable<void> Connection::wait_for_room_aside(std::shared_ptr<Connection> self) {
  const auto wake = [weak = self->weak_from_this(), &worker = self->worker_] {
    asio::post(worker.io, [weak] {
      if (const auto connection = weak.lock()) connection->room_aside_.cancel();
    });
  };
  while (self->session_->store().is_full_aside(wake) && !self->channel_->closed())
    co_await self->room_aside_.async_wait(asio::as_tuple(asio::use_awaitable));
}

void Connection::refuse(std::uint64_t id, const Error& error) { channel_->send(Operation::error, id, make_error(error)); }

void Connection::break_off(const Error& error) {
  log::warn("memory server: connection of {} ended: {}", peer_, error.text());
  refuse(0, error);
}

void Connection::done(std::uint64_t id, std::vector<std::byte> body) { channel_->send(Operation::done, id, std::move(body)); }

Status Connection::welcome(const Frame& frame) {
  YADO_ASSIGN(hello_, parse_hello(frame.body), "HELLO");
  if (parts_.admits && !parts_.admits(peer_)) return fail(Errc::permission, "{} may have no memory here", peer_);
  YADO_ASSIGN(const Sessions::Opened opened, parts_.sessions.open(hello_, peer_), "HELLO");
  if (opened.abandoned)  // what the owner of an earlier life began, nobody ends
    asio::post(opened.abandoned->line(), [session = opened.abandoned] { session->abandon({}); });
  if (hello_.role == Role::owner) YADO_TRY(opened.session->store().take_over(owner()), "HELLO");
  if (hello_.role == Role::heir) hello_.role = Role::owner;  // it has taken over
  session_ = opened.session;
  hello_deadline_.guard(nullptr);
  const SessionStats stats = session_->store().stats();
  channel_->send(Operation::welcome, frame.header.id, make_welcome({session_->instance(), stats.data_pages + stats.zero_pages}));
  return {};
}

/// As long as the owner is the one it was told of, whichever of that one's connections.
PageStore::Owner Connection::reads_as() const {
  const PageStore::Owner now = session_->store().owner();
  return hello_.role == Role::reader && now.epoch == hello_.from ? now : owner();
}

bool Connection::may(Operation operation) const {
  switch (hello_.role) {
    case Role::owner:
    case Role::heir: return true;
    case Role::looker: return operation == Operation::list || operation == Operation::stat;
    case Role::mover: return operation == Operation::put || operation == Operation::stat;
    case Role::reader: return operation == Operation::get || operation == Operation::list || operation == Operation::stat;
  }
  return false;
}

Status Connection::answer(const Frame& frame) {
  if (session_->ended()) return fail(Errc::not_found, "session {} was ended", hello_.session);
  const Operation operation = frame.header.operation;
  if (!may(operation)) return fail(Errc::permission, "{} is the owner's alone", name_of(operation));
  switch (operation) {
    case Operation::get: return get(frame);
    case Operation::put: return put(frame);
    case Operation::drop: return drop(frame);
    case Operation::list: return list(frame);
    case Operation::stat:
      channel_->send(Operation::stats, frame.header.id, make_stats(session_->store().stats()));
      return {};
    case Operation::end: return end(frame);
    case Operation::save: return save(frame);
    case Operation::fix: return fix(frame);
    case Operation::finish: return finish(frame);
    case Operation::keep: return keep(frame);
    case Operation::abandon: return abandon(frame);
    case Operation::load: return load(frame);
    case Operation::move: return move(frame);
    case Operation::quota: return quota(frame);
    default: return fail(Errc::unsupported, "{} is no request that is answered here", name_of(operation));
  }
}

Status Connection::get(const Frame& frame) {
  YADO_ASSIGN(const Batch wanted, parse_batch(frame.body, BatchUse::get), "GET");
  // Answers wait in their blocks: many small ones must not hold many large blocks.
  const std::size_t bytes = wanted.pages() * page_bytes;
  auto block = bytes <= 64_KiB ? std::make_shared_for_overwrite<std::byte[]>(bytes) : parts_.blocks.take();
  YADO_ASSIGN(PageStore::Found found, session_->store().get(reads_as(), wanted, {block.get(), bytes}), "GET");
  if (found.from_disk > 0) parts_.pace.wished(os::now());
  channel_->send(Operation::pages, frame.header.id, make_batch(found.runs), {found.data}, std::move(block));
  return {};
}

Status Connection::put(const Frame& frame) {
  YADO_ASSIGN(const Batch batch, parse_batch(frame.body, BatchUse::put), "PUT");
  const bool unchanged = frame.header.flags == flag_unchanged;
  YADO_TRY(hello_.role == Role::mover ? session_->store().add(hello_.epoch, batch) : session_->store().put(owner(), batch, unchanged), "PUT");
  done(frame.header.id);
  return {};
}

Status Connection::drop(const Frame& frame) {
  YADO_ASSIGN(const Batch batch, parse_batch(frame.body, BatchUse::drop), "DROP");
  YADO_TRY(session_->store().drop(owner(), batch), "DROP");
  done(frame.header.id);
  return {};
}

Status Connection::list(const Frame& frame) {
  YADO_ASSIGN(const std::uint64_t from, parse_number(frame.body), "LIST");
  channel_->send(Operation::pages, frame.header.id, make_batch(session_->store().list(from)));
  return {};
}

Status Connection::quota(const Frame& frame) {
  YADO_ASSIGN(const std::uint64_t pages, parse_number(frame.body), "QUOTA");
  YADO_TRY(parts_.sessions.set_quota(*session_, owner(), pages), "QUOTA");
  done(frame.header.id);
  return {};
}

Status Connection::end(const Frame& frame) {
  if (session_->store().owner() != owner()) return fail(Errc::stale_epoch, "END: session {} has another owner", hello_.session);
  YADO_TRY(parts_.sessions.end(hello_.session), "END");
  done(frame.header.id);
  return {};
}

// ---- what takes long -------------------------------------------------------------------------------------------------

/// Runs `work` where it disturbs nobody and answers when it is done.
Status Connection::archive(std::uint64_t id, const asio::any_io_executor& where, Work work) {
  if (!session_->has_archive()) return fail(Errc::unsupported, "this server has no archive of images");
  asio::post(where, [self = shared_from_this(), id, work = std::move(work), busy = asio::make_work_guard(worker_.io)] {
    self->archived(id, work());
  });
  return {};
}

/// From any thread.
void Connection::archived(std::uint64_t id, Result<std::vector<std::byte>> result) {
  asio::post(worker_.io, [self = shared_from_this(), id, result = std::move(result)]() mutable {
    if (result)
      self->done(id, std::move(*result));
    else
      self->refuse(id, result.error());
  });
}

/// Answered when FIX may come; what the first round has left it writes behind its answer.
Status Connection::begin_saving(std::uint64_t id, SaveRequest request) {
  if (!session_->has_archive()) return fail(Errc::unsupported, "this server has no archive of images");
  asio::post(session_->line(), [self = shared_from_this(), id, session = session_, request = std::move(request), busy = asio::make_work_guard(worker_.io)] {
    bool answered = false;
    const auto saved = session->save(request, [&](const Saved& so_far) {
      answered = true;
      self->archived(id, make_saved(so_far));
    });
    if (!saved) log::warn("memory server: SAVE of {}: {}", request.name, saved.error().text());
    if (answered) return;
    if (saved) self->archived(id, make_saved(*saved));
    else self->archived(id, context(saved.error(), "SAVE"));
  });
  return {};
}

Status Connection::save(const Frame& frame) {
  YADO_ASSIGN(SaveRequest request, parse_save(frame.body, (frame.header.flags & flag_limited) != 0), "SAVE");
  return begin_saving(frame.header.id, std::move(request));
}

Status Connection::fix(const Frame& frame) {
  YADO_ASSIGN(const std::string name, parse_name(frame.body), "FIX");
  YADO_TRY(session_->fix(name), "FIX");
  done(frame.header.id);
  return {};
}

Status Connection::finish(const Frame& frame) {
  YADO_ASSIGN(const FinishRequest request, parse_finish(frame.body), "FINISH");
  YADO_TRY(session_->own(request), "FINISH");
  if (frame.header.flags == flag_more) {
    done(frame.header.id, make_saved({}));
    return {};
  }
  return archive(frame.header.id, session_->line(), [session = session_, name = request.name]() -> Result<std::vector<std::byte>> {
    YADO_ASSIGN(const Saved saved, session->finish(name), "FINISH");
    return make_saved(saved);
  });
}

Status Connection::keep(const Frame& frame) {
  YADO_ASSIGN(std::string name, parse_name(frame.body), "KEEP");
  return archive(frame.header.id, session_->line(), [session = session_, name = std::move(name)]() -> Result<std::vector<std::byte>> {
    YADO_ASSIGN(const std::string sum, session->keep(name), "KEEP");
    return make_name(sum);
  });
}

Status Connection::abandon(const Frame& frame) {
  YADO_ASSIGN(std::string name, parse_name(frame.body), "ABANDON");
  session_->stop_saving(name);
  return archive(frame.header.id, session_->line(), [session = session_, name = std::move(name)]() -> Result<std::vector<std::byte>> {
    session->abandon(name);
    return std::vector<std::byte>{};
  });
}

Status Connection::load(const Frame& frame) {
  YADO_ASSIGN(LoadRequest request, parse_load(frame.body), "LOAD");
  session_->want(request);
  if (frame.header.flags == flag_more) {
    done(frame.header.id, make_number(0));
    return {};
  }
  return archive(frame.header.id, parts_.loader.io.get_executor(), [session = session_, names = std::move(request.names), owner = owner(), &parts = parts_]() -> Result<std::vector<std::byte>> {
    const auto set_quota = [&](std::uint64_t pages) { return parts.sessions.set_quota(*session, owner, pages); };
    YADO_ASSIGN(const std::uint64_t pages, session->load(owner, names, set_quota), "LOAD");
    parts.pace.wished(os::now());  // whoever has it loaded is about to begin
    bring_in(parts, session, 0ns);
    return make_number(pages);
  });
}

std::shared_ptr<ServerLink> Connection::idle_link(const MovedTo& to) {
  while (auto node = idle_.extract(to)) {
    if (node.mapped()->connected()) return std::move(node.mapped());
    node.mapped()->close();
  }
  return nullptr;
}

Status Connection::move(const Frame& frame) {
  YADO_ASSIGN(MoveRequest request, parse_move(frame.body), "MOVE");
  Hello hello = hello_;
  hello.role = Role::mover;
  hello.generation = request.instance;
  const std::uint64_t id = frame.header.id;
  const MovedTo to{request.to.text(), request.to.expected_peer, request.instance};
  const auto answer = [this, id, to](const Result<std::uint64_t>& moved, std::shared_ptr<ServerLink> link) {  // not after end(), so we are there
    if (link) idle_.emplace(to, std::move(link));
    if (moved)
      done(id, make_number(*moved));
    else
      refuse(id, moved.error());
    moves_.erase(id);
  };
  const PageMove::What what{worker_.io.get_executor(), parts_.blocks, {session_, &session_->store()}, owner(), parts_.identity(),
                            std::move(hello), std::move(request), idle_link(to)};
  PageMove::start(moves_[id] = std::make_shared<PageMove>(what, answer));
  return {};
}

}  // namespace yado::pager
