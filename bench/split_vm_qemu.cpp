#include "split_vm_qemu.hpp"

#include <csignal>

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/units.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "workload/vm/command_line.hpp"
#include "workload/vm/sockets.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;
using json = nlohmann::json;

constexpr int console_room_bytes = 4_MiB;  // nobody reads during a checkpoint (workload/vm/console.hpp)
constexpr std::uint64_t unlimited = 1ull << 40;
constexpr auto migration_limit = 600s;     // keeps a broken run from hanging

/// The command line has a second monitor and the guest agent's port on listening sockets; nobody here connects to them.
Result<os::Fd> unused_listener() {
  os::Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un nameless{};
  nameless.sun_family = AF_UNIX;
  if (!socket.valid() || ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&nameless), sizeof(sa_family_t)) < 0 || ::listen(socket.get(), 1) < 0)
    return fail_errno("socket");
  return socket;
}

/// Firmware beside a QEMU that was unpacked into a directory of its own (tools/install-qemu).
std::vector<std::string> firmware_of(const fs::path& qemu) {
  std::vector<std::string> options;
  for (const char* name : {"qemu", "seabios"})
    if (const fs::path beside = qemu.parent_path().parent_path() / "share" / name; fs::is_directory(beside)) options.insert(options.end(), {"-L", beside});
  return options;
}

std::string last_words(const os::Fd& words) {
  char text[4096];
  const ssize_t n = ::read(words.get(), text, sizeof text);
  return n > 0 ? std::string(text, static_cast<std::size_t>(n)) : "it says nothing";
}

}  // namespace

OrdinaryVm::~OrdinaryVm() {
  process_.kill();
  (void)cgroup_.remove();
}

Result<std::unique_ptr<OrdinaryVm>> OrdinaryVm::start(const vm::VmSpec& spec, const vm::Qemu& qemu, const std::string& cgroup, Begin begin,
                                                       vm::PagerProcess* pager) {
  const std::string doing = fmt::format("start {}", qemu.system.native());
  std::unique_ptr<OrdinaryVm> made(new OrdinaryVm);
  made->limit_ = qemu.limit;
  YADO_ASSIGN(made->cgroup_, os::Cgroup::create(cgroup), doing);
  made->memory_ = os::Fd(::memfd_create("yado-bench-guest", MFD_CLOEXEC));
  if (!made->memory_.valid() || ::ftruncate(made->memory_.get(), static_cast<off_t>(spec.memory_bytes)) < 0) return fail_errno(doing);
  YADO_ASSIGN(vm::SocketPair monitor, vm::make_socket_pair(), doing);
  YADO_ASSIGN(vm::SocketPair console, vm::make_socket_pair(), doing);
  (void)::setsockopt(console.theirs.get(), SOL_SOCKET, SO_SNDBUFFORCE, &console_room_bytes, sizeof console_room_bytes);
  YADO_ASSIGN(const os::Fd control, unused_listener(), doing);
  YADO_ASSIGN(const os::Fd agent, unused_listener(), doing);
  YADO_ASSIGN(os::Pipe error, os::make_pipe(), doing);
  YADO_TRY(os::set_nonblocking(error.write), doing);
  YADO_TRY(os::set_nonblocking(error.read), doing);
  made->words_ = std::move(error.read);

  const vm::CommandLine call{.spec = spec, .qemu = qemu, .machine = "q35", .base_formats = {}, .layers = {}, .network_card = false, .incoming = begin == Begin::incoming};
  os::Spawn spawn{.arguments = vm::build(call)};
  const auto firmware = firmware_of(qemu.system);
  spawn.arguments.insert(spawn.arguments.end(), firmware.begin(), firmware.end());
  spawn.standard_error = error.write.get();
  spawn.descriptors = {{monitor.theirs.get(), vm::monitor_descriptor},
                       {control.get(), vm::control_descriptor},
                       {console.theirs.get(), vm::console_descriptor},
                       {agent.get(), vm::agent_descriptor},
                       {made->memory_.get(), vm::memory_descriptor}};
  if (pager) {
    spawn.environment.insert(spawn.environment.end(), {fmt::format("LD_PRELOAD=/proc/self/fd/{}", vm::hook_descriptor),
                                                       fmt::format("YADO_PAGES_MEMORY=/proc/self/fd/{}", vm::memory_descriptor),
                                                       fmt::format("YADO_PAGES_PAGER=fd:{}", vm::pager_descriptor)});
    spawn.descriptors.emplace_back(pager->hook().get(), vm::pager_descriptor);
    spawn.descriptors.emplace_back(pager->library().get(), vm::hook_descriptor);
  }
  spawn.death_signal = SIGKILL;
  spawn.in_child = [&made] { return made->cgroup_.add(::getpid()); };
  YADO_ASSIGN(made->process_, os::spawn(spawn), doing);
  if (pager) pager->let_go();
  monitor.theirs.reset();
  console.theirs.reset();
  made->console_ = vm::Console(std::move(console.ours));
  auto opened = vm::Qmp::open(std::move(monitor.ours), qemu.limit);
  if (!opened) return fail(opened.error().code, "{}: {}: {}", doing, opened.error().message, last_words(made->words_));
  made->monitor_ = std::make_unique<vm::Qmp>(std::move(*opened));
  // Without these QEMU limits itself to 128 MiB/s and does not say how it goes.
  YADO_TRY(made->execute("migrate-set-capabilities", R"({"capabilities": [{"capability": "events", "state": true}]})"), doing);
  YADO_TRY(made->execute("migrate-set-parameters", json{{"max-bandwidth", unlimited}}.dump()), doing);
  return made;
}

Status OrdinaryVm::hand_over(const os::Fd& file, const std::string& name) {
  YADO_TRY(monitor_->execute("getfd", json{{"fdname", name}}.dump(), limit_, file.get()), "hand over a file");
  return {};
}

Status OrdinaryVm::wait_migrated(int last_pass) {
  const Instant deadline = os::now() + migration_limit;
  for (;;) {
    YADO_ASSIGN(const auto event, monitor_->next_event(deadline - os::now()), "migration");
    if (!event) return fail(Errc::timed_out, "migration: not over after {} s", migration_limit.count());
    const json data = json::parse(event->data, nullptr, false);
    if (event->name == "MIGRATION_PASS" && data.value("pass", 0) == last_pass + 1 && last_pass > 0) YADO_TRY(execute("stop"), "migration");
    if (event->name != "MIGRATION") continue;
    const std::string status = data.value("status", "");
    if (status == "completed") return {};
    if (status == "failed" || status == "cancelled")
      return fail(Errc::conflict, "migration {}: {}; {}", status, execute("query-migrate").value_or("QEMU gives no reason"), last_words(words_));
  }
}

}  // namespace yado::bench
