#include "pager/service.hpp"

#include <atomic>
#include <csignal>
#include <fcntl.h>
#include <nlohmann/json.hpp>
#include <poll.h>
#include <random>
#include <sys/socket.h>
#include <system_error>
#include <thread>
#include <unistd.h>

#include "base/log.hpp"
#include "os/file.hpp"
#include "pager/client.hpp"
#include "pager/changed_pages.hpp"
#include "pager/order_of_use.hpp"
#include "wire/listen.hpp"

namespace yado::pager {
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr int hook_descriptor = 3, told_descriptor = 4;

/// One line from whoever connects; nobody, if the process ends before.
Result<std::pair<os::Fd, json>> first_call(const wire::UnixListener& listener, const GuestMemory& memory) {
  pollfd wanted[] = {{memory.process_fd(), POLLRDHUP, 0}, {listener.socket.get(), POLLIN, 0}};
  while (wanted[1].revents == 0) {
    if (::poll(wanted, 2, -1) < 0 && errno != EINTR) return fail_errno("poll");
    if (wanted[0].revents != 0) return fail(Errc::unavailable, "the process has ended before it was told what to inherit");
  }
  os::Fd socket(::accept4(listener.socket.get(), nullptr, nullptr, SOCK_CLOEXEC));
  std::string heard;
  char text[4096];
  while (heard.find('\n') == std::string::npos) {
    const ssize_t n = ::read(socket.get(), text, sizeof text);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return std::pair(std::move(socket), json());
    heard.append(text, static_cast<std::size_t>(n));
  }
  return std::pair(std::move(socket), json::parse(heard, nullptr, false));
}

/// Whom to answer, once everything was inherited; `config` says what.
Result<os::Fd> wait_for_heritage(const wire::UnixListener& listener, const GuestMemory& memory, ServiceConfig& config) {
  for (;;) {
    YADO_ASSIGN(auto call, first_call(listener, memory), "pager");
    const json& said = call.second;
    auto told = said.is_object() && said.value("do", "") == "inherit" ? config_from_text(said.value("config", json()).dump())
                                                                      : fail(Errc::conflict, "this pager waits to be told what to inherit");
    if (told && told->memory_bytes != config.memory_bytes) told = fail(Errc::conflict, "this pager waits for another memory");
    if (told) {
      told->control = config.control;
      config = std::move(*told);
      return std::move(call.first);
    }
    (void)os::write_all(call.first, error_of(told.error()).dump() + "\n");
  }
}

/// The threads of those who ask. They end with the process: some wait for what will not come.
class Clients {
 public:
  explicit Clients(ServedMemory& memory) : memory_(memory) {}

  void take(os::Fd socket) {
    if (const Status begun = begin(socket); !begun) (void)os::write_all(socket, error_of(begun.error()).dump() + "\n");
  }

 private:
  static constexpr int most = 64;

  Status begin(os::Fd& socket) try {
    if (under_way_ >= most) return fail(Errc::no_space, "{} clients ask this pager already", most);
    std::thread([this, fd = socket.get()]() noexcept {
      Client(os::Fd(fd), memory_).serve();
      --under_way_;
    }).detach();
    ++under_way_;
    (void)socket.release();  // the thread's
    return {};
  } catch (const std::system_error& none) {
    return fail(Errc::no_space, "no thread for a client: {}", none.what());
  }

  ServedMemory& memory_;
  std::atomic<int> under_way_ = 0;  ///< begun by one thread, so never more than `most`
};

Status serve(ServiceConfig config, os::Fd hook, const os::Fd& starter) {
  std::random_device random;
  const std::uint64_t seed = std::uint64_t{random()} << 32 | random();
  // Whoever waits for a page of this memory must not wait for ever, nor get another: the process ends, and the hook sees to QEMU.
  const auto lost = [&starter](const Error& why) {
    log::error("pager: {}: this memory is lost", why.text());
    (void)os::write_all(starter, fmt::format("lost:{}\n", why.message));
    ::_exit(1);
  };
  std::optional<wire::UnixListener> listener;
  std::optional<GuestMemory> memory;
  const auto listen = [&]() -> Status {
    YADO_ASSIGN(listener, wire::make_unix_listener(config.control.native(), 0600), "pager");
    YADO_TRY(os::write_all(starter, "ok\n"), "pager");
    YADO_ASSIGN(GuestMemory taken, GuestMemory::take(std::move(hook)), "pager");
    memory.emplace(std::move(taken));
    return {};
  };
  os::Fd heir;
  const bool waits = config.waits;
  if (waits) {
    YADO_TRY(listen(), "pager");
    YADO_TRY(memory->go(), "pager");
    auto told = wait_for_heritage(*listener, *memory, config);
    if (!told) {
      listener->file.remove();
      return std::unexpected(told.error());
    }
    heir = std::move(*told);
  }
  Network network(config);
  const Status open = network.open(seed);
  if (!open && heir.valid()) (void)os::write_all(heir, error_of(open.error()).dump() + "\n");
  YADO_TRY(open, "pager");
  if (!waits) YADO_TRY(listen(), "pager");
  if (memory->pages() != network.pages())
    return fail(Errc::conflict, "the process has a memory of {} pages, wanted were {}", memory->pages(), network.pages());
  Pager pager(*memory, network.memory(), network.executor(),
              {{.pages = memory->pages(), .local_limit = config.local_bytes / page_bytes, .prefetch_most = config.prefetch_pages}, seed, lost});
  // Restored, or left: whoever has a share counts from the image's cut, too.
  ServedMemory served{config, pager, network, std::make_shared<SaveWatch>(), {}};
  if (network.chain()) {
    pager.count_changes();
    served.kept.cut = network.chain()->cut();
  } else if (!config.left_in.empty()) {
    // Without the file there was no image, or it could not be left: all is saved then.
    if (auto changed = read_changed_pages(config.left_in, pager.pages())) {
      pager.count_changes(std::move(changed->pages));
      served.kept.cut = changed->since;
    } else if (changed.error().code != Errc::not_found) {
      log::warn("pager: {}: the next checkpoint has all of this memory", changed.error().text());
    }
  }
  if (!waits) YADO_TRY(memory->go(), "pager");
  if (network.owns()) network.start(pager);
  if (auto order = prefetch_order(config, network.chain().get()); !order.empty()) pager.prefetch(std::move(order));
  if (heir.valid()) (void)os::write_all(heir, json{{"ok", true}}.dump() + "\n");

  Clients clients(served);
  for (;;) {
    pollfd wanted[] = {{memory->process_fd(), POLLRDHUP, 0}, {listener->socket.get(), POLLIN, 0}};
    if (::poll(wanted, 2, -1) < 0 && errno != EINTR) lost(fail_errno("poll").error());
    if (wanted[0].revents != 0) break;
    if (wanted[1].revents == 0) continue;
    os::Fd socket(::accept4(listener->socket.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (socket.valid()) clients.take(std::move(socket));
  }
  listener->file.remove();
  network.servers().end_sessions();
  ::_exit(0);  // nothing of this process is needed any more
}

}  // namespace

int run_service(const fs::path& path) {
  ::signal(SIGPIPE, SIG_IGN);
  os::Fd hook(hook_descriptor), told(told_descriptor);
  for (const os::Fd* fd : {&hook, &told}) ::fcntl(fd->get(), F_SETFD, FD_CLOEXEC);
  const auto text = os::read_text(path);
  const auto config = text ? config_from_text(*text) : Result<ServiceConfig>(std::unexpected(text.error()));
  Status ended = config ? serve(*config, std::move(hook), told) : Status(std::unexpected(config.error()));
  if (ended) return 0;
  log::error("pager: {}", ended.error().text());
  (void)os::write_all(told, fmt::format("{}:{}\n", static_cast<int>(ended.error().code), ended.error().message));
  return 1;
}

}  // namespace yado::pager
