#include "pager/memory_server.hpp"

#include <sys/random.h>
#include <sys/socket.h>

#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "base/id.hpp"
#include "base/log.hpp"
#include "pager/channel.hpp"
#include "wire/link.hpp"
#include "wire/listen.hpp"

namespace yado::pager {
namespace asio = boost::asio;
namespace {

/// A peer that connects and says nothing holds a descriptor and a buffer; a handshake and HELLO take three round trips.
constexpr auto hello_limit = std::chrono::seconds(10);
/// Answers of a connection that wait to be sent; above it, its requests wait.
constexpr std::size_t most_unsent_bytes = 4_MiB;

struct Held {
  Held(PageArena& arena, std::uint64_t pages, std::uint64_t quota) : store(arena, pages, quota) {}
  PageStore store;
  std::string owner;
  std::uint64_t instance = 0;
  std::atomic<bool> ended = false;
};

Result<std::uint64_t> random_number() {
  std::uint64_t number = 0;
  if (::getrandom(&number, sizeof number, 0) != sizeof number) return fail_errno("getrandom");
  return number;
}

/// All sessions and the memory they share. Thread-safe.
class Sessions {
 public:
  explicit Sessions(std::uint64_t capacity_pages) : arena_(capacity_pages) {}

  /// The session of that name, made if need be.
  Result<std::shared_ptr<Held>> open(const Hello& hello, const std::string& peer) {
    if (!valid_name(hello.session)) return fail(Errc::invalid_argument, "\"{}\" is no name of a session", hello.session);
    const std::lock_guard lock(mutex_);
    if (const auto found = sessions_.find(hello.session); found != sessions_.end()) {
      Held& held = *found->second;
      if (held.owner != peer)
        return fail(Errc::permission, "session {} belongs to {}, not to {}", hello.session, held.owner, peer);
      if (hello.owner && (held.store.pages() != hello.pages || held.store.quota_pages() != hello.quota_pages))
        return fail(Errc::conflict, "session {} has {} pages and a quota of {}, not {} and {}", hello.session,
                    held.store.pages(), held.store.quota_pages(), hello.pages, hello.quota_pages);
      return found->second;
    }
    if (!hello.owner) return fail(Errc::not_found, "there is no session {}", hello.session);
    std::uint64_t set_aside = 0;
    for (const auto& [name, held] : sessions_) set_aside += held->store.quota_pages();
    if (hello.quota_pages > arena_.capacity_pages() - set_aside)
      return fail(Errc::no_space, "{} pages are asked for, {} of {} are free", hello.quota_pages,
                  arena_.capacity_pages() - set_aside, arena_.capacity_pages());
    YADO_ASSIGN(const std::uint64_t instance, random_number(), "session");
    auto held = std::make_shared<Held>(arena_, hello.pages, hello.quota_pages);
    held->owner = peer;
    held->instance = instance;
    sessions_.emplace(hello.session, held);
    return held;
  }

  Status end(const std::string& name) {
    const std::lock_guard lock(mutex_);
    const auto found = sessions_.find(name);
    if (found == sessions_.end()) return fail(Errc::not_found, "there is no session {}", name);
    found->second->ended = true;
    sessions_.erase(found);
    return {};
  }

  std::vector<MemoryServer::Session> list() const {
    const std::lock_guard lock(mutex_);
    std::vector<MemoryServer::Session> all;
    for (const auto& [name, held] : sessions_) all.push_back({name, held->owner, held->store.stats()});
    return all;
  }

 private:
  PageArena arena_;
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Held>> sessions_;  // guarded by mutex_
};

/// A thread with an io_context: connections live on one for their whole life.
struct Worker {
  asio::io_context io{1};
  asio::executor_work_guard<asio::io_context::executor_type> busy = asio::make_work_guard(io);
  std::thread thread;
};

}  // namespace

struct MemoryServer::Impl {
  Options options;
  Sessions sessions;
  BlockPool blocks{channel_block_bytes};
  std::vector<std::unique_ptr<Worker>> workers;
  Worker archiver;
  std::vector<wire::SocketFile> files;
  std::atomic<unsigned> turn = 0;

  explicit Impl(Options given) : options(std::move(given)), sessions(options.capacity_pages) {}

  Status listen(os::Fd socket, std::shared_ptr<asio::ssl::context> tls);
  asio::awaitable<void> accept(std::shared_ptr<asio::posix::stream_descriptor> listener,
                               std::shared_ptr<asio::ssl::context> tls);
  void start(os::Fd fd, int family, std::shared_ptr<asio::ssl::context> tls);
};

namespace {

/// One connection, on one worker's thread.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(wire::Stream stream, Worker& worker, Worker& archiver, Sessions& sessions,
             const MemoryServer::Options& options, BlockPool& blocks)
      : stream_(std::make_shared<wire::Stream>(std::move(stream))), worker_(worker), archiver_(archiver), sessions_(sessions),
        options_(options), blocks_(blocks) {}

  static asio::awaitable<void> serve(std::shared_ptr<Connection> self, bool tls) {
    self->hello_deadline_.set(hello_limit);
    self->hello_deadline_.guard(self->stream_.get());
    if (const auto error = co_await self->stream_->handshake(asio::ssl::stream_base::server)) {
      if (!self->hello_deadline_.passed()) log::warn("memory server: a peer was refused: {}", self->stream_->explain(error));
      co_return self->stream_->close();
    }
    self->peer_ = tls ? self->stream_->peer_name() : "local";
    self->channel_ = std::make_shared<Channel>(self->stream_, self->worker_.io.get_executor(), self->blocks_);
    asio::co_spawn(self->worker_.io, Channel::write_loop(self->channel_), asio::detached);
    co_await answer_requests(self);
    // What was said last should arrive, but it is not waited for longer than for a HELLO.
    self->hello_deadline_.set(hello_limit);
    self->hello_deadline_.guard(self->stream_.get());
    co_await Channel::drained(self->channel_, 0);
    self->channel_->close();
  }

 private:
  static asio::awaitable<void> answer_requests(std::shared_ptr<Connection> self) {
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
      if (!self->held_ && frame->header.operation != Operation::hello)
        co_return self->break_off({Errc::corrupt, "the first request must be HELLO"});
      const Status done = self->held_ ? self->answer(*frame) : self->welcome(*frame);
      if (!done) {
        self->refuse(last_id, done.error());
        if (!self->held_) co_return;
      }
      if (self->channel_->unsent_bytes() > most_unsent_bytes) co_await Channel::drained(self->channel_, most_unsent_bytes / 2);
    }
  }

  void refuse(std::uint64_t id, const Error& error) { channel_->send(Operation::error, id, make_error(error)); }
  void break_off(const Error& error) {
    log::warn("memory server: connection of {} ended: {}", peer_, error.text());
    refuse(0, error);
  }
  void done(std::uint64_t id, std::vector<std::byte> body = {}) { channel_->send(Operation::done, id, std::move(body)); }

  Status welcome(const Frame& frame) {
    YADO_ASSIGN(hello_, parse_hello(frame.body), "HELLO");
    if (options_.admits && !options_.admits(peer_)) return fail(Errc::permission, "{} may have no memory here", peer_);
    YADO_ASSIGN(auto held, sessions_.open(hello_, peer_), "HELLO");
    if (hello_.owner) YADO_TRY(held->store.take_over(owner()), "HELLO");
    held_ = std::move(held);
    hello_deadline_.guard(nullptr);
    const SessionStats stats = held_->store.stats();
    channel_->send(Operation::welcome, frame.header.id,
                   make_welcome({held_->instance, stats.data_pages + stats.zero_pages}));
    return {};
  }

  Status answer(const Frame& frame) {
    if (held_->ended) return fail(Errc::not_found, "session {} was ended", hello_.session);
    const Operation operation = frame.header.operation;
    if (!hello_.owner && operation != Operation::list && operation != Operation::stat && operation != Operation::save)
      return fail(Errc::permission, "{} is the owner's alone", name_of(operation));
    switch (operation) {
      case Operation::get: return get(frame);
      case Operation::put: return put(frame);
      case Operation::drop: return drop(frame);
      case Operation::list: return list(frame);
      case Operation::stat: channel_->send(Operation::stats, frame.header.id, make_stats(held_->store.stats())); return {};
      case Operation::save: return save(frame);
      case Operation::load: return load(frame);
      case Operation::end: return end(frame);
      default: return fail(Errc::unsupported, "{} is not done here", name_of(operation));
    }
  }

  Status get(const Frame& frame) {
    YADO_ASSIGN(const Batch wanted, parse_batch(frame.body, BatchUse::get), "GET");
    // Answers wait in their blocks: many small ones must not hold many large blocks.
    const std::size_t bytes = wanted.pages() * page_bytes;
    auto block = bytes <= 64_KiB ? std::make_shared_for_overwrite<std::byte[]>(bytes) : blocks_.take();
    YADO_ASSIGN(PageStore::Found found, held_->store.get(owner(), wanted, {block.get(), bytes}), "GET");
    channel_->send(Operation::pages, frame.header.id, make_batch(found.runs), {found.data}, std::move(block));
    return {};
  }

  Status put(const Frame& frame) {
    YADO_ASSIGN(const Batch batch, parse_batch(frame.body, BatchUse::put), "PUT");
    YADO_TRY(held_->store.put(owner(), batch), "PUT");
    done(frame.header.id);
    return {};
  }

  Status drop(const Frame& frame) {
    YADO_ASSIGN(const Batch batch, parse_batch(frame.body, BatchUse::drop), "DROP");
    YADO_TRY(held_->store.drop(owner(), batch), "DROP");
    done(frame.header.id);
    return {};
  }

  Status list(const Frame& frame) {
    YADO_ASSIGN(const std::uint64_t from, parse_number(frame.body), "LIST");
    channel_->send(Operation::pages, frame.header.id, make_batch(held_->store.list(from)));
    return {};
  }

  Status end(const Frame& frame) {
    YADO_TRY(sessions_.end(hello_.session), "END");
    done(frame.header.id);
    return {};
  }

  Status save(const Frame& frame) {
    YADO_ASSIGN(std::string name, parse_name(frame.body), "SAVE");
    const bool changed_only = frame.header.flags == flag_changed_only;
    return archive(frame.header.id, "SAVE", [held = held_, archive = options_.archive, session = hello_.session,
                                             name = std::move(name), changed_only]() -> Result<std::uint64_t> {
      YADO_ASSIGN(const auto sink, archive->create(session, name, changed_only), "SAVE");
      return held->store.save(*sink, changed_only);
    });
  }

  Status load(const Frame& frame) {
    YADO_ASSIGN(std::string name, parse_name(frame.body), "LOAD");
    return archive(frame.header.id, "LOAD", [held = held_, archive = options_.archive, session = hello_.session,
                                             name = std::move(name), owner = owner()]() -> Result<std::uint64_t> {
      YADO_ASSIGN(const auto source, archive->open(session, name), "LOAD");
      return held->store.load(owner, *source);
    });
  }

  /// Runs `work` where it disturbs nobody and answers when it is done.
  Status archive(std::uint64_t id, std::string_view what, std::function<Result<std::uint64_t>()> work) {
    if (!options_.archive) return fail(Errc::unsupported, "{}: this server has no archive", what);
    asio::post(archiver_.io, [self = shared_from_this(), id, work = std::move(work),
                              busy = asio::make_work_guard(worker_.io)] {
      auto result = work();
      asio::post(self->worker_.io, [self, id, result = std::move(result)] {
        if (result)
          self->done(id, make_number(*result));
        else
          self->refuse(id, result.error());
      });
    });
    return {};
  }

  PageStore::Owner owner() const { return {hello_.epoch, hello_.generation}; }

  std::shared_ptr<wire::Stream> stream_;
  Worker& worker_;
  Worker& archiver_;
  Sessions& sessions_;
  const MemoryServer::Options& options_;
  BlockPool& blocks_;
  wire::Deadline hello_deadline_{worker_.io.get_executor()};
  std::shared_ptr<Channel> channel_;  ///< after the handshake
  std::string peer_ = "a peer before its handshake";
  Hello hello_;
  std::shared_ptr<Held> held_;  ///< after HELLO
};

}  // namespace

Status MemoryServer::Impl::listen(os::Fd socket, std::shared_ptr<asio::ssl::context> tls) {
  auto listener = std::make_shared<asio::posix::stream_descriptor>(workers[0]->io, socket.release());
  asio::co_spawn(workers[0]->io, accept(std::move(listener), std::move(tls)), asio::detached);
  return {};
}

asio::awaitable<void> MemoryServer::Impl::accept(std::shared_ptr<asio::posix::stream_descriptor> listener,
                                                 std::shared_ptr<asio::ssl::context> tls) {
  for (;;) {
    const auto [error] = co_await listener->async_wait(listener->wait_read, asio::as_tuple(asio::use_awaitable));
    if (error) co_return;
    sockaddr_storage peer{};
    socklen_t size = sizeof peer;
    os::Fd fd(::accept4(listener->native_handle(), reinterpret_cast<sockaddr*>(&peer), &size, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (fd.valid()) {
      start(std::move(fd), peer.ss_family, tls);
    } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
      log::error("memory server: connections wait: {}", fail_errno("accept").error().message);
      asio::steady_timer retry(listener->get_executor(), std::chrono::seconds(1));  // whoever frees one does not tell us
      co_await retry.async_wait(asio::as_tuple(asio::use_awaitable));
    }
  }
}

void MemoryServer::Impl::start(os::Fd fd, int family, std::shared_ptr<asio::ssl::context> tls) {
  Worker& worker = *workers[turn++ % workers.size()];
  asio::post(worker.io, [this, &worker, family, tls = std::move(tls), raw = std::make_shared<os::Fd>(std::move(fd))] {
    wire::Stream::Socket socket(worker.io);
    boost::system::error_code error;
    socket.assign(asio::generic::stream_protocol(family, 0), raw->get(), error);
    if (error) return log::error("memory server: cannot watch a connection: {}", error.message());
    (void)raw->release();
    if (family != AF_UNIX) wire::tune_tcp(socket);
    const bool with_tls = tls != nullptr;
    auto connection = std::make_shared<Connection>(wire::Stream(std::move(socket), tls), worker, archiver, sessions,
                                                   options, blocks);
    asio::co_spawn(worker.io, Connection::serve(std::move(connection), with_tls), asio::detached);
  });
}

MemoryServer::MemoryServer(Options options) : impl_(std::make_shared<Impl>(std::move(options))) {
  const auto run = [](Worker& worker) { worker.thread = std::thread([&worker] { worker.io.run(); }); };
  for (unsigned i = 0; i < std::max(1U, impl_->options.threads); ++i) impl_->workers.push_back(std::make_unique<Worker>());
  for (auto& worker : impl_->workers) run(*worker);
  run(impl_->archiver);
}

// Stopped first, all of them: destroying an io_context destroys its coroutines, and those know the other threads' things.
MemoryServer::~MemoryServer() {
  impl_->archiver.busy.reset();  // a SAVE under way goes on to its end
  impl_->archiver.thread.join();
  for (auto& worker : impl_->workers) worker->io.stop();
  for (auto& worker : impl_->workers) worker->thread.join();
  impl_->workers.clear();
  for (const wire::SocketFile& file : impl_->files) file.remove();
}

Status MemoryServer::listen_unix(const std::string& path, unsigned mode) {
  YADO_ASSIGN(auto made, wire::make_unix_listener(path, mode), "memory server");
  impl_->files.push_back(made.file);
  return impl_->listen(std::move(made.socket), nullptr);
}

Result<std::uint16_t> MemoryServer::listen_tls(const std::string& address, std::uint16_t port,
                                               const wire::Identity& identity) {
  YADO_ASSIGN(auto socket, wire::make_tcp_listener(address, port), "memory server");
  YADO_ASSIGN(const std::uint16_t bound, wire::check_listener(socket, true), "memory server");
  YADO_ASSIGN(auto tls, wire::server_context(identity), "memory server");
  YADO_TRY(impl_->listen(std::move(socket), std::move(tls)), "memory server");
  return bound;
}

std::vector<MemoryServer::Session> MemoryServer::sessions() const { return impl_->sessions.list(); }
Status MemoryServer::end(const std::string& session) { return impl_->sessions.end(session); }

}  // namespace yado::pager
