#include "workload/vm/vm.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <future>
#include <iterator>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/log.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/netns.hpp"
#include "os/process.hpp"
#include "workload/vm/brake.hpp"
#include "workload/vm/command_line.hpp"
#include "workload/vm/device_state.hpp"
#include "workload/vm/dhcp.hpp"
#include "workload/vm/disk.hpp"
#include "workload/vm/disk_mark.hpp"
#include "workload/vm/disk_seal.hpp"
#include "workload/vm/frozen_disks.hpp"
#include "workload/vm/sockets.hpp"
#include "workload/vm/tap.hpp"

namespace yado::vm {
namespace {

namespace fs = std::filesystem;
using json = nlohmann::json;

constexpr const char* control_socket = "control";
constexpr const char* state_file = "device-state";
constexpr const char* agent_socket = "agent";
constexpr const char* driver = "vm-2";  // 2: with a port for the guest's agent
constexpr int agent_queue = 16;
constexpr QemuVersion oldest{7, 2, 0};
constexpr const char* newest_machine = "q35";
constexpr int console_room_bytes = 4 << 20;
constexpr std::size_t expected_layers = 2;  ///< of a disk, besides those that came ahead: as many as there are after a save (disk_seal.hpp)

/// Guest memory as a file without a name: nothing is left of it when the last descriptor is closed.
Result<os::Fd> make_memory(std::uint64_t bytes) {
  os::Fd memory(::memfd_create("yado-guest", MFD_CLOEXEC));
  if (!memory.valid()) return fail_errno("memfd_create");
  if (::ftruncate(memory.get(), static_cast<off_t>(bytes)) != 0) return fail_errno(fmt::format("memory of {} bytes", bytes));
  return memory;
}

Result<os::Netns> network_of(const Place& place) {
  if (place.network_namespace < 0) return os::Netns::current();
  os::Fd copy(::fcntl(place.network_namespace, F_DUPFD_CLOEXEC, 3));
  if (!copy.valid()) return fail_errno("network namespace");
  return os::Netns(std::move(copy));
}

/// When it said so, by QEMU's clock; what it said before is forgotten.
Result<std::chrono::microseconds> time_of(Qmp& qmp, std::string_view event_name, nanoseconds limit) {
  const Instant deadline = os::now() + limit;
  for (;;) {
    YADO_ASSIGN(const auto event, qmp.next_event(deadline - os::now()), fmt::format("wait for {}", event_name));
    if (!event) return fail(Errc::timed_out, "QEMU has not said {} within {} ms", event_name, to_ms(limit));
    if (event->name == event_name) return event->at;
  }
}

/// "pc-q35-7.2": what the alias "q35" means to this QEMU, and must mean to the one that restores.
Result<std::string> machine_of(Qmp& qmp, nanoseconds limit) {
  YADO_ASSIGN(const std::string answer, qmp.execute("qom-get", R"({"path": "/machine", "property": "type"})", limit), "machine type");
  const json parsed = json::parse(answer, nullptr, false);
  std::string type = parsed.is_string() ? parsed.get<std::string>() : "";
  constexpr std::string_view suffix = "-machine";
  if (!type.ends_with(suffix)) return fail(Errc::unsupported, "QEMU calls its machine \"{}\"", type);
  type.resize(type.size() - suffix.size());
  return type;
}

/// What there is of a disk in an image, the oldest first.
std::vector<fs::path> layers_that_came(const ImageParts& image, std::size_t disk) {
  std::vector<fs::path> all;
  for (const fs::path& directory : image.ahead) std::ranges::copy(layers_of(directory, disk), std::back_inserter(all));
  std::ranges::copy(layers_of(image.disk, disk), std::back_inserter(all));
  return all;
}

}  // namespace

struct Vm::State {
  // Destroyed from the last to the first: QEMU before what it uses.
  VmSpec spec;
  Place place;
  Qemu qemu;
  std::string machine;
  os::Fd directory;
  os::Fd memory;
  std::vector<fs::path> ahead;  ///< of one that is expected: where the first layers of its disks came from
  std::string tap;
  std::optional<Qmp> monitor;
  Console console;
  os::Fd words;  ///< QEMU's standard error
  os::Cgroup cgroup;
  std::optional<PagerProcess> pager;
  os::Process process;
  os::Pidfd pidfd;
  std::string guest_end;  ///< what the guest did to end, as QEMU said
  std::optional<End> ended;
  bool no_room = false;  ///< QEMU stopped it for that
  std::vector<QmpEvent> seen;  ///< while something else was asked

  ~State() {
    (void)cgroup.kill_all();
    process.kill();
    if (pager) pager->wait_for_end();
    if (directory.valid())
      for (const char* name : {control_socket, agent_socket}) (void)::unlinkat(directory.get(), name, 0);
  }

  static Result<std::unique_ptr<State>> make(const VmSpec& spec, const Place& place, const Qemu& qemu) {
    YADO_TRY(check(spec), "VM");
    auto state = std::make_unique<State>();
    state->spec = spec;
    state->place = place;
    state->qemu = qemu;
    YADO_ASSIGN(state->directory, os::open_path(place.directory, O_RDONLY | O_DIRECTORY), "VM");
    YADO_ASSIGN(state->cgroup, os::Cgroup::create(place.cgroup), "VM");
    YADO_TRY(state->cgroup.limit({.cpus = spec.cpus}), "VM");
    YADO_ASSIGN(state->memory, make_memory(spec.memory_bytes), "VM");
    return state;
  }

  /// Starts QEMU, standing still, and asks who it is.
  Status launch(const std::string& wanted_machine, bool incoming) {
    CommandLine call{.spec = spec, .qemu = qemu, .machine = wanted_machine, .base_formats = {}, .layers = {}, .network_card = spec.mac.has_value(), .incoming = incoming};
    for (std::size_t i = 0; i < spec.disks.size(); ++i) {
      YADO_ASSIGN(const DiskFormat format, format_of(spec.disks[i]), "VM");
      call.base_formats.push_back(format);
      call.layers.push_back(layers_of(place.directory, i));
    }
    YADO_ASSIGN(SocketPair monitor_ends, make_socket_pair(), "VM");
    YADO_ASSIGN(SocketPair console_ends, make_socket_pair(), "VM");
    // For an owner who is busy for a moment (console.hpp); without the right to it the guest waits earlier.
    (void)::setsockopt(console_ends.theirs.get(), SOL_SOCKET, SO_SNDBUFFORCE, &console_room_bytes, sizeof console_room_bytes);
    YADO_ASSIGN(const os::Fd control, listen_in(directory, control_socket), "VM");
    YADO_ASSIGN(const os::Fd agent, listen_in(directory, agent_socket, agent_queue), "VM");
    YADO_ASSIGN(os::Pipe error, os::make_pipe(), "VM");
    // Never to be waited for by QEMU: what nobody reads beyond 64 KiB is lost.
    YADO_TRY(os::set_nonblocking(error.write), "VM");
    YADO_TRY(os::set_nonblocking(error.read), "VM");
    words = std::move(error.read);
    Tap card;
    if (spec.mac) {
      YADO_ASSIGN(const os::Netns network, network_of(place), "VM");
      YADO_ASSIGN(card, make_tap(network, place.bridge), "VM");
      tap = card.name;
    }

    os::Spawn spawn{.arguments = build(call)};
    spawn.standard_error = error.write.get();
    spawn.descriptors = {{monitor_ends.theirs.get(), monitor_descriptor},
                         {control.get(), control_descriptor},
                         {console_ends.theirs.get(), console_descriptor},
                         {memory.get(), memory_descriptor},
                         {agent.get(), agent_descriptor}};
    if (place.paging) {
      YADO_ASSIGN(pager, PagerProcess::begin(*place.paging, place.directory, spec.memory_bytes), "VM");
      spawn.environment = {fmt::format("LD_PRELOAD=/proc/self/fd/{}", hook_descriptor), fmt::format("YADO_PAGES_MEMORY=/proc/self/fd/{}", memory_descriptor),
                           fmt::format("YADO_PAGES_PAGER=fd:{}", pager_descriptor)};
      spawn.descriptors.emplace_back(pager->hook().get(), pager_descriptor);
      spawn.descriptors.emplace_back(pager->library().get(), hook_descriptor);
    }
    if (card.fd.valid()) spawn.descriptors.emplace_back(card.fd.get(), tap_descriptor);
    spawn.death_signal = SIGKILL;
    spawn.in_child = [this] { return cgroup.add(::getpid()); };
    YADO_ASSIGN(process, os::spawn(spawn), "VM");
    YADO_ASSIGN(pidfd, os::Pidfd::open(process.pidfd().pid()), "VM");
    if (spec.mac && spec.dhcp) YADO_TRY(answer_dhcp(), "VM");  // while QEMU starts
    if (pager) {
      pager->let_go();
      YADO_TRY(pager->wait_ready(), "VM");  // while QEMU starts
    }
    monitor_ends.theirs.reset();
    console_ends.theirs.reset();
    error.write.reset();
    console = Console(std::move(console_ends.ours));

    auto opened = Qmp::open(std::move(monitor_ends.ours), qemu.limit);
    if (!opened) return explain(opened.error());
    monitor.emplace(std::move(*opened));
    if (const QemuVersion version = monitor->version(); version < oldest)
      return fail(Errc::unsupported, "{} is version {}.{}.{}; needed is {}.{} or later", qemu.system.native(), version.major, version.minor, version.micro, oldest.major, oldest.minor);
    YADO_ASSIGN(machine, machine_of(*monitor, qemu.limit), "VM");
    return {};
  }

  /// In the cgroup: what ends QEMU ends it, too.
  Status answer_dhcp() const {
    YADO_ASSIGN(const os::Netns network, network_of(place), "DHCP");
    return start_dhcp_server({.program = qemu.dhcp_server, .bridge = place.bridge, .guest = *spec.mac, .name_servers = name_servers_of_host()}, network, cgroup, qemu.limit);
  }

  /// An error of a QEMU that has ended says little: its last words say more.
  std::unexpected<Error> explain(const Error& error) {
    if (error.code != Errc::application) return std::unexpected(error);
    (void)pidfd.ended_within(qemu.limit);
    const auto end = reap();
    if (!end || !*end) return std::unexpected(error);
    return fail(Errc::application, "QEMU has ended: {}", (*end)->reason);
  }

  /// What QEMU wrote to its standard error, the last of it.
  std::string last_words() const {
    constexpr std::size_t most = 1000;
    std::string text;
    char chunk[4096];
    for (ssize_t n; (n = ::read(words.get(), chunk, sizeof chunk)) > 0 || (n < 0 && errno == EINTR);)
      if (n > 0) text.append(chunk, static_cast<std::size_t>(n));
    while (!text.empty() && text.back() == '\n') text.pop_back();
    if (text.size() > most) text.erase(0, text.size() - most);
    return text;
  }

  void note(const QmpEvent& event) {
    if (event.name == "GUEST_PANICKED") guest_end = "the guest panicked";
    if (event.name == "RESUME") no_room = false;
    if (event.name == "BLOCK_IO_ERROR") {
      const json error = json::parse(event.data, nullptr, false);
      no_room = no_room || (error.is_object() && error.value("nospace", false) && error.value("action", "") == "stop");
    }
    if (event.name != "SHUTDOWN" || !guest_end.empty()) return;
    const json data = json::parse(event.data, nullptr, false);
    const std::string reason = data.is_object() ? data.value("reason", "") : "";
    if (reason == "guest-shutdown") guest_end = "the guest powered off";
    if (reason == "host-qmp-quit") guest_end = "QEMU was told to quit";
  }

  /// Everything that is there, without waiting. An error is the end of QEMU.
  Status collect_events() {
    while (monitor) {
      YADO_ASSIGN(auto event, monitor->next_event(0ns), "VM");
      if (!event) return {};
      note(*event);
      seen.push_back(std::move(*event));
    }
    return {};
  }

  /// Waits for the end while listening, so that a guest that prints on its way down is not held up.
  Result<bool> ended_within(nanoseconds limit) {
    const Instant deadline = os::now() + limit;
    bool console_open = true;
    for (;;) {
      const nanoseconds left = std::max(nanoseconds(0), nanoseconds(deadline - os::now()));
      const timespec wait{static_cast<time_t>(left / 1s), static_cast<long>((left % 1s).count())};
      pollfd wanted[] = {{pidfd.fd(), POLLIN, 0}, {console_open ? console.fd() : -1, POLLIN, 0}};
      if (::ppoll(wanted, 2, &wait, nullptr) < 0 && errno != EINTR) return fail_errno("poll");
      if (wanted[1].revents != 0) console_open = console.hold();
      if (wanted[0].revents != 0) return true;
      if (left == 0ns) return false;
    }
  }

  /// Again and again: no guest says that it has heard, and one that is still booting, with nobody at its button yet, hears nothing.
  Result<bool> press_power_button(nanoseconds grace) {
    const Instant deadline = os::now() + grace;
    for (nanoseconds pause = 1s;; pause *= 2) {
      const auto pressed = monitor->execute("system_powerdown", "{}", qemu.limit);
      if (!pressed) return pressed.error().code == Errc::application ? ended_within(qemu.limit) : false;  // it is about to end
      const nanoseconds left = deadline - os::now();
      YADO_ASSIGN(const bool gone, ended_within(std::min(pause, left)), "power button");
      if (gone || left <= pause) return gone;
    }
  }

  Result<std::optional<End>> reap() {
    if (ended) return ended;
    YADO_ASSIGN(const bool gone, pidfd.ended_within(0ns), "reap");
    if (!gone) return std::optional<End>{};
    (void)collect_events();
    YADO_ASSIGN(const std::optional<os::ExitStatus> status, process.wait(0ns), "reap");
    if (!status) return std::optional<End>{};
    std::string reason = guest_end;
    if (reason.empty()) {
      const std::string lost = pager ? pager->last_words() : std::string(), text = last_words();
      reason = status->text();
      if (!lost.empty()) reason = "its memory is lost: " + lost;
      else if (!text.empty()) reason += ": " + text;
    }
    ended = End{*status, std::move(reason)};
    return ended;
  }

  /// Made of this spec, under this accelerator.
  Status suits(const ImageParts& image) const {
    const auto property = [&](const std::string& name) {
      const auto found = image.properties.find(name);
      return found == image.properties.end() ? std::string() : found->second;
    };
    for (const auto& [name, wanted] : properties()) {
      if (name == "machine" || property(name) == wanted) continue;
      if (name == "accelerator" && !property(name).empty())
        return fail(Errc::unsupported, "the image was made under {}, and here is {}: {}", property(name), wanted, qemu.accelerator.why);
      return fail(Errc::corrupt, "the image is not of this spec: its {} is \"{}\", wanted is \"{}\"", name, property(name), wanted);
    }
    if (property("machine").empty()) return fail(Errc::corrupt, "the image's manifest lacks the property machine");
    return {};
  }

  Status own_memory(std::uint64_t epoch) const { return pager ? pager->own(epoch) : Status(); }

  Status load_devices(const ImageParts& image, Begin begin, std::uint64_t epoch) {
    if (Status loaded = load_device_state(*monitor, image.device_state / state_file, qemu.limit); !loaded)
      return context(explain(loaded.error()).error(), "devices");
    if (begin != Begin::running) return {};
    YADO_TRY(own_memory(epoch), "resume");
    YADO_TRY(yado::vm::resume(*monitor, qemu.limit), "resume");
    return {};
  }

  std::map<std::string, std::string> properties() const {
    return {{"driver", driver},
            {"machine", machine},
            {"accelerator", std::string(name_of(qemu.accelerator.kind))},
            {"memory_bytes", fmt::format("{}", spec.memory_bytes)},
            {"vcpus", fmt::format("{}", spec.vcpus)},
            {"disks", fmt::format("{}", spec.disks.size())},
            {"mac", spec.mac ? spec.mac->str() : ""}};
  }
};

Vm::Vm(std::unique_ptr<State> state) : state_(std::move(state)) {}
Vm::Vm(Vm&&) noexcept = default;
Vm& Vm::operator=(Vm&&) noexcept = default;
Vm::~Vm() = default;

Result<Vm> Vm::start(const VmSpec& spec, const Place& place, const Qemu& qemu, Begin begin) {
  YADO_ASSIGN(std::unique_ptr<State> state, State::make(spec, place, qemu), "start");
  for (std::size_t i = 0; i < spec.disks.size(); ++i) {
    // A layer without a header was never finished, so nobody has written to it.
    for (const fs::path& layer : layers_of(place.directory, i))
      if (format_of(layer).value_or(DiskFormat::qcow2) != DiskFormat::qcow2) ::unlink(layer.c_str());
    // The newest is written to.
    if (const auto layers = layers_of(place.directory, i); layers.empty() || is_shared(layers.back())) YADO_TRY(make_overlay(qemu, spec.disks[i], next_layer(place.directory, i)), "start");
  }
  YADO_TRY(state->launch(newest_machine, false), "start");
  if (begin == Begin::running) YADO_TRY(yado::vm::resume(*state->monitor, qemu.limit), "start");
  return Vm(std::move(state));
}

Result<Vm> Vm::restore(const VmSpec& spec, const Place& place, const Qemu& qemu, const ImageParts& image,
                       MemoryPart& memory, Begin begin) {
  YADO_ASSIGN(std::unique_ptr<State> state, State::make(spec, place, qemu), "restore");
  YADO_TRY(state->suits(image), "restore");
  for (std::size_t i = 0; i < spec.disks.size(); ++i) {
    if (!layers_of(place.directory, i).empty())
      return fail(Errc::conflict, "restore: {} holds disks already: a restore needs a directory of its own", place.directory.native());
    const auto saved = layers_that_came(image, i);
    if (saved.empty()) return fail(Errc::corrupt, "restore: the image has no disk {}", i);
    for (const fs::path& layer : saved) YADO_TRY(share_disk(layer, place.directory / layer.filename()), "restore");
    // What is written from now on lies above what the image has: its files are this guest's, too, and a delta of it has only what is newer.
    YADO_TRY(make_overlay(qemu, spec.disks[i], next_layer(place.directory, i)), "restore");
  }
  if (const std::string cut = memory.restored_cut(); !cut.empty()) {
    YADO_ASSIGN(const DiskMark mark, mark_now(place.directory, spec.disks.size(), cut), "restore");
    if (!spec.disks.empty()) YADO_TRY(write_mark(place.directory, mark), "restore");
  }
  YADO_TRY(memory.load(state->memory, spec.memory_bytes), "restore");
  YADO_TRY(state->launch(image.properties.at("machine"), true), "restore");
  YADO_TRY(state->load_devices(image, begin, place.paging ? place.paging->config.epoch : 0), "restore");
  return Vm(std::move(state));
}

Result<Vm> Vm::expect(const VmSpec& spec, const Place& place, const Qemu& qemu, const std::vector<fs::path>& ahead) {
  if (!place.paging) return fail(Errc::unsupported, "{}: only a VM with split memory is expected", spec.name);
  Place where = place;
  where.paging->config.waits = true;
  YADO_ASSIGN(std::unique_ptr<State> state, State::make(spec, where, qemu), "expect");
  state->ahead = ahead;
  for (std::size_t i = 0; i < spec.disks.size(); ++i) {
    for (const fs::path& directory : ahead)
      for (const fs::path& layer : layers_of(directory, i)) YADO_TRY(copy_disk(layer, place.directory / layer.filename()), "expect");
    for (std::size_t layer = 0; layer < expected_layers; ++layer)
      YADO_TRY(make_overlay(qemu, spec.disks[i], next_layer(place.directory, i)), "expect");
  }
  YADO_TRY(state->launch(newest_machine, true), "expect");
  return Vm(std::move(state));
}

Status Vm::suits(const ImageParts& image) const {
  YADO_ASSIGN(const auto ended, state_->reap(), "expected");
  if (ended) return fail(Errc::application, "QEMU has ended: {}", ended->reason);
  YADO_TRY(state_->suits(image), "expected");
  if (image.properties.at("machine") != state_->machine)
    return fail(Errc::conflict, "expected was a machine {}, and {} came", state_->machine, image.properties.at("machine"));
  const auto& ahead = state_->ahead;
  if (ahead.size() > image.ahead.size() || !std::equal(ahead.begin(), ahead.end(), image.ahead.begin()))
    return fail(Errc::conflict, "other disks came ahead than those that lie ready");
  for (std::size_t i = 0; i < state_->spec.disks.size(); ++i)
    if (const auto came = layers_that_came(image, i), here = layers_of(state_->place.directory, i); came.empty() || came.size() > here.size())
      return fail(Errc::conflict, "expected were up to {} layers of disk {}, and {} came", here.size(), i, came.size());
  return {};
}

Status Vm::go_on(const ImageParts& image, const pager::ServiceConfig& heritage, Begin begin) {
  YADO_TRY(suits(image), "restore");
  // QEMU reads a disk's tables again before it uses it after a migration: its content may come until then, as on a disk that hosts share.
  // Who lies on what QEMU was told; a layer for which none came stays empty, on top. What came ahead is there.
  for (std::size_t i = 0; i < state_->spec.disks.size(); ++i) {
    const auto came = layers_that_came(image, i), here = layers_of(state_->place.directory, i);
    for (std::size_t layer = here.size() - expected_layers; layer < came.size(); ++layer) YADO_TRY(replace_content(came[layer], here.at(layer)), "restore");
  }
  pager::ServiceConfig config = heritage;
  config.memory_bytes = state_->spec.memory_bytes;
  YADO_TRY(state_->pager->inherit(config), "restore");
  return state_->load_devices(image, begin, config.epoch);
}

Result<std::uint64_t> Vm::seal(const fs::path& disk, const std::vector<fs::path>& ahead) const {
  const nanoseconds limit = state_->qemu.limit;
  YADO_ASSIGN(os::Fd socket, connect_in(state_->directory, control_socket), "seal");
  YADO_ASSIGN(Qmp qmp, Qmp::open(std::move(socket), limit), "seal");
  const fs::path& directory = state_->place.directory;
  const std::size_t disks = state_->spec.disks.size();
  YADO_TRY(tidy_disks(qmp, directory, disks, limit), "seal");
  YADO_ASSIGN(const std::string now, yado::vm::run_state(qmp, limit), "seal");
  if (now != "running") return fail(Errc::conflict, "seal: the guest is {}: only one that runs is left while it runs", now);
  if (ahead.empty()) {
    // Who leaves needs few layers more than deltas of its images.
    YADO_TRY(forget_mark(directory), "seal");
    if (Status merged = merge_sealed(qmp, directory, disks, limit); !merged) log::warn("{}: {}", state_->spec.name, merged.error().text());
  }
  YADO_ASSIGN(const NewLayers next, make_new_layers(state_->qemu, state_->spec.disks, directory), "seal");
  YADO_TRY(seal_disks(qmp, next, limit), "seal");
  YADO_ASSIGN(const auto without, layers_ahead(directory, disks, ahead), "seal");
  return copy_sealed(directory, disks, disk, without);
}

Result<Saved> Vm::save(const fs::path& device_state, const fs::path& disk, MemoryPart& memory, After after, const DisksAhead& ahead) const {
  const nanoseconds limit = state_->qemu.limit;
  YADO_ASSIGN(os::Fd socket, connect_in(state_->directory, control_socket), "save");
  // A connection of its own: what a killed saver leaves half-said ends with it.
  auto opened = Qmp::open(std::move(socket), limit);
  if (!opened) return context(opened.error(), "save");
  Qmp& qmp = *opened;

  const fs::path& directory = state_->place.directory;
  const std::size_t disks = state_->spec.disks.size();
  YADO_TRY(tidy_disks(qmp, directory, disks, limit), "save");
  YADO_ASSIGN(const std::string before, yado::vm::run_state(qmp, limit), "save");
  const bool runs = before == "running";
  if (before == "postmigrate") return fail(Errc::conflict, "save: the guest has stood still since it was last saved; resume it first");

  YADO_ASSIGN(DeviceStateSaving devices, DeviceStateSaving::prepare(qmp, device_state / state_file, limit), "save");
  const bool rest = runs && after == After::as_before && disks > 0;
  YADO_ASSIGN(const NewLayers next_layers, make_new_layers(state_->qemu, state_->spec.disks, directory), "save");
  FrozenDisks disks_at_rest = rest ? FrozenDisks::prepare(qmp, [this] { return connect_agent(); }, limit) : FrozenDisks();
  {
    Brake brake(state_->cgroup, state_->spec.cpus);
    YADO_TRY(memory.before_pause(brake), "save");
  }
  Saved saved{.properties = state_->properties()};
  if (after == After::paused) {
    YADO_ASSIGN(const std::uint64_t written, unsealed_bytes(next_layers), "save");
    if (saved.not_yet = written > ahead.most_bytes; saved.not_yet) return saved;
  }
  std::chrono::microseconds stopped_at{0};
  // What is done while the guest stands still.
  const auto cut = [&]() -> Status {
    YADO_TRY(qmp.execute("stop", "{}", limit), "stop");
    if (runs) {
      YADO_ASSIGN(stopped_at, time_of(qmp, "STOP", limit), "stop");
    }
    if (Status sealed = seal_disks(qmp, next_layers, limit); !sealed) return sealed;
    // Beside each other: nothing changes the memory of a machine that stands still, also not the saving of its devices.
    auto memory_saved = std::async(std::launch::async, [&] { return memory.save(state_->memory, state_->spec.memory_bytes); });
    const auto bytes = devices.save(limit);
    const Status memory_done = memory_saved.get();
    if (!bytes) return std::unexpected(bytes.error());
    saved.device_state_bytes = *bytes;
    return memory_done;
  };
  const auto go_on = [&]() -> Status {
    if (!runs) return {};
    YADO_TRY(yado::vm::resume(qmp, limit), "the guest stands still");
    if (stopped_at == 0us) return {};
    YADO_ASSIGN(const std::chrono::microseconds resumed_at, time_of(qmp, "RESUME", limit), "save");
    saved.pause = resumed_at - stopped_at;
    return {};
  };
  saved.disks_frozen = disks_at_rest.freeze();
  Status done = cut();
  const auto copy_layers = [&]() -> Status {
    YADO_ASSIGN(std::vector<std::size_t> without, layers_ahead(directory, disks, ahead.directories), "save");
    const auto mark = read_mark(directory);
    if (const std::string base = memory.delta_of(); mark && !base.empty() && mark->cut == base)
      if (const auto in_base = below(*mark, directory, disks)) {
        without = *in_base;
        saved.disks_are_delta = true;
      }
    YADO_ASSIGN(saved.disk_bytes, copy_sealed(directory, disks, disk, without), "save");
    YADO_ASSIGN(DiskMark now, mark_now(directory, disks, {}), "save");
    saved.disks_since = std::move(now.layers);
    return {};
  };
  if (done && after == After::paused) {
    if (done = memory.after_pause(); done) done = copy_layers();
    if (done) return saved;
  }
  const Status goes_on = go_on();
  disks_at_rest.thaw();
  if (!goes_on)
    return fail(goes_on.error().code, "save: {}{}", done ? "" : done.error().message + "; and ", goes_on.error().message);
  if (done) done = memory.after_pause();
  if (done) done = copy_layers();
  // Also after a failure, or every one would add a layer. What cannot be merged now is with the next save: QEMU keeps
  // its hands off the disks of a guest that stands still after a migration.
  if (!runs) return done ? Result<Saved>(std::move(saved)) : context(done.error(), "save");
  if (Status merged = merge_sealed(qmp, directory, disks, limit); !merged) log::warn("{}: {}", state_->spec.name, merged.error().text());
  YADO_TRY(done, "save");
  return saved;
}

Status Vm::kept(const Saved& saved, const std::string& cut) const {
  const nanoseconds limit = state_->qemu.limit;
  const fs::path& directory = state_->place.directory;
  const std::size_t disks = state_->spec.disks.size();
  if (disks == 0) return {};
  YADO_ASSIGN(os::Fd socket, connect_in(state_->directory, control_socket), "disks");
  YADO_ASSIGN(Qmp qmp, Qmp::open(std::move(socket), limit), "disks");
  YADO_TRY(write_mark(directory, {cut, saved.disks_since}), "disks");
  return merge_sealed(qmp, directory, disks, limit);
}

Result<bool> Vm::has_agent() { return agent_port_is_open(*state_->monitor, state_->qemu.limit); }

Result<os::Fd> Vm::connect_agent() const { return connect_in(state_->directory, agent_socket); }

Result<GuestAgent> Vm::agent(nanoseconds limit) const {
  {
    // Whether there is any, QEMU knows at once.
    YADO_ASSIGN(os::Fd socket, connect_in(state_->directory, control_socket), "guest agent");
    YADO_ASSIGN(Qmp qmp, Qmp::open(std::move(socket), limit), "guest agent");
    YADO_ASSIGN(const bool there, agent_port_is_open(qmp, limit), "guest agent");
    if (!there) return fail(Errc::unavailable, "no agent runs in the guest: install and start qemu-guest-agent there");
  }
  YADO_ASSIGN(os::Fd socket, connect_agent(), "guest agent");
  return GuestAgent::open(std::move(socket), limit);
}

Status Vm::own_memory(std::uint64_t epoch) { return state_->own_memory(epoch); }

Status Vm::pause() {
  YADO_TRY(state_->monitor->execute("stop", "{}", state_->qemu.limit), "pause");
  return {};
}

Status Vm::resume() {
  full_speed(state_->cgroup, state_->spec.cpus);
  return yado::vm::resume(*state_->monitor, state_->qemu.limit);
}

Result<std::string> Vm::run_state() { return yado::vm::run_state(*state_->monitor, state_->qemu.limit); }

Result<std::vector<QmpEvent>> Vm::take_events() {
  const Status collected = state_->collect_events();
  // The end is an error only when nothing came before it.
  if (!collected && state_->seen.empty()) return std::unexpected(collected.error());
  return std::exchange(state_->seen, {});
}

bool Vm::stands_for_room() const { return state_->no_room; }

Result<End> Vm::stop(nanoseconds grace) {
  if (state_->ended) return *state_->ended;
  full_speed(state_->cgroup, state_->spec.cpus);
  const nanoseconds limit = state_->qemu.limit;
  const auto runs = run_state();
  bool gone = false;
  if (runs && *runs == "running") {
    YADO_ASSIGN(gone, state_->press_power_button(grace), "stop");
  }
  // A QEMU that does not answer is not asked a second time.
  if (!gone && runs && state_->monitor->execute("quit", "{}", limit)) {
    YADO_ASSIGN(gone, state_->ended_within(limit), "stop");
  }
  if (!gone) {
    YADO_TRY(state_->cgroup.kill_all(), "stop");
    YADO_TRY(state_->pidfd.ended_within(std::nullopt), "stop");
  }
  YADO_ASSIGN(const std::optional<End> end, state_->reap(), "stop");
  if (!end) return fail(Errc::internal, "stop: process {} was killed and is still there", state_->pidfd.pid());
  return *end;
}

Result<std::optional<End>> Vm::reap() { return state_->reap(); }

Result<VmUse> Vm::stats() const {
  VmUse use;
  YADO_ASSIGN(use.qemu, state_->cgroup.use(), "stats");
  struct stat status {};
  if (::fstat(state_->memory.get(), &status) != 0) return fail_errno("stats: memory");
  constexpr std::uint64_t block = 512;  // of st_blocks, whatever the file system's own (stat(2))
  use.guest_bytes = static_cast<std::uint64_t>(status.st_blocks) * block;
  return use;
}

int Vm::monitor_fd() const { return state_->monitor->fd(); }
Console& Vm::console() { return state_->console; }
const os::Pidfd& Vm::process() const { return state_->pidfd; }
const os::Fd& Vm::memory() const { return state_->memory; }
const os::Cgroup& Vm::cgroup() const { return state_->cgroup; }
const Qemu& Vm::qemu() const { return state_->qemu; }
QemuVersion Vm::version() const { return state_->monitor->version(); }
const std::string& Vm::tap() const { return state_->tap; }
std::uint64_t Vm::memory_bytes() const { return state_->spec.memory_bytes; }
std::filesystem::path Vm::pager() const { return state_->pager ? state_->pager->control() : fs::path(); }

}  // namespace yado::vm
