#include "pager/memory_server.hpp"

#include <sys/socket.h>

#include <atomic>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <mutex>

#include "base/log.hpp"
#include "os/clock.hpp"
#include "pager/connection.hpp"
#include "wire/listen.hpp"

namespace yado::pager {
namespace asio = boost::asio;

namespace {
/// Sessions that save at once; a further one waits. More than a disk likes, because one with a limit mostly sleeps.
constexpr std::size_t most_saving = 16;
}  // namespace

struct MemoryServer::Impl {
  Options options;
  asio::thread_pool savers{most_saving};  // outlives the sessions, which have a line each in it
  Sessions sessions;
  BlockPool blocks{channel_block_bytes};
  std::mutex mutex;
  std::shared_ptr<const wire::Identity> identity;  // guarded by mutex
  std::vector<std::unique_ptr<Worker>> workers;
  Worker loader;
  BackgroundPace pace{os::now()};
  ServerParts parts{sessions, blocks, loader, pace, options.admits, [this] {
                      const std::lock_guard lock(mutex);
                      return identity;
                    }};
  std::vector<wire::SocketFile> files;
  std::atomic<unsigned> turn = 0;

  explicit Impl(Options given) : options(std::move(given)), sessions(options.capacity_pages, options.archive, [this] { return asio::make_strand(savers); }) {}

  Status listen(os::Fd socket, std::shared_ptr<asio::ssl::context> tls);
  asio::awaitable<void> accept(std::shared_ptr<asio::posix::stream_descriptor> listener,
                               std::shared_ptr<asio::ssl::context> tls);
  void start(os::Fd fd, int family, std::shared_ptr<asio::ssl::context> tls);
};

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
    auto connection = std::make_shared<Connection>(wire::Stream(std::move(socket), tls), worker, parts);
    asio::co_spawn(worker.io, Connection::serve(std::move(connection), with_tls), asio::detached);
  });
}

MemoryServer::MemoryServer(Options options) : impl_(std::make_shared<Impl>(std::move(options))) {
  const auto run = [](Worker& worker) { worker.thread = std::thread([&worker] { worker.io.run(); }); };
  for (unsigned i = 0; i < std::max(1U, impl_->options.threads); ++i) impl_->workers.push_back(std::make_unique<Worker>());
  for (auto& worker : impl_->workers) run(*worker);
  run(impl_->loader);
}

// Nobody asks for anything new, then what is under way ends. Destroying an io_context destroys its coroutines, and those know the other
// threads' things: last.
MemoryServer::~MemoryServer() {
  for (auto& worker : impl_->workers) worker->io.stop();
  for (auto& worker : impl_->workers) worker->thread.join();
  impl_->sessions.end_all();
  impl_->savers.join();
  impl_->loader.busy.reset();
  impl_->loader.thread.join();
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
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->identity = std::make_shared<const wire::Identity>(identity);
  }
  YADO_TRY(impl_->listen(std::move(socket), std::move(tls)), "memory server");
  return bound;
}

std::vector<MemoryServer::Session> MemoryServer::sessions() const {
  std::vector<Session> all;
  for (const auto& session : impl_->sessions.all()) all.push_back({session->name(), session->owner(), session->store().stats()});
  return all;
}

Status MemoryServer::end(const std::string& session) { return impl_->sessions.end(session); }

}  // namespace yado::pager
