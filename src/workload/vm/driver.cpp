#include "workload/vm/driver.hpp"

#include <algorithm>
#include <iterator>
#include <sstream>

#include <csignal>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.hpp"
#include "net/guest_network.hpp"
#include "net/host_network.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/process.hpp"
#include "workload/vm/disk.hpp"
#include "workload/vm/pages_memory.hpp"
#include "workload/vm/vm.hpp"

namespace yado::vm {
namespace {

constexpr nanoseconds cgroup_freeze_limit = 10s;
constexpr int first_descriptor = 3;            // after standard input, output and error
constexpr nanoseconds agent_limit = 10s;       // for one answer of the guest's agent
constexpr nanoseconds frozen_agent_limit = 1h; // while all that the guest writes waits for it

/// Below this share of one processor a guest counts as idle: its timers tick on.
constexpr double idle_share = 0.2;

Result<std::filesystem::path> part(const workload::PartDirectories& parts, const std::string& name) {
  const auto found = parts.find(name);
  if (found == parts.end()) return fail(Errc::corrupt, "an image of a VM has a part \"{}\"; this one has none", name);
  return found->second;
}

/// Whether the guest takes a connection at its service's port; nothing is sent.
Result<bool> listens(std::uint16_t port, nanoseconds limit) {
  const os::Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return fail_errno("socket");
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = net::instance_address.network_order();
  if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0) return true;
  if (errno != EINPROGRESS) return false;
  pollfd done{socket.get(), POLLOUT, 0};
  if (::poll(&done, 1, static_cast<int>(limit / 1ms)) <= 0) return false;
  int error = 0;
  socklen_t size = sizeof error;
  return ::getsockopt(socket.get(), SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
}

/// One XOR needs three hosts. With fewer left the guest is rather recovered, its pages kept twice, than not at all.
bool has_parity(const Split& split) { return split.redundancy == Redundancy::parity && std::ranges::count(split.over, false, &MemoryHost::leaving) >= 3; }
unsigned copies_of(const Split& split) { return split.redundancy == Redundancy::none || has_parity(split) ? 1 : 2; }

/// Those without a size share evenly what the others leave, each page as often as is wanted; room for half as much again, because regions
/// are not equally full.
std::vector<pager::ServiceConfig::Server> servers_of(const Split& split, std::uint64_t memory_bytes) {
  std::uint64_t rest = memory_bytes * copies_of(split), hosts = 0;
  for (const MemoryHost& host : split.over) {
    if (host.leaving) continue;
    rest -= std::min(rest, host.bytes);
    hosts += host.bytes == 0;
  }
  const std::uint64_t share = std::min(memory_bytes, rest / std::max<std::uint64_t>(hosts, 1) * 3 / 2) / 4096 * 4096;
  std::vector<pager::ServiceConfig::Server> servers;
  for (const MemoryHost& host : split.over)
    servers.push_back({.host = host.host.str(), .unix_path = {}, .address = host.address, .port = host.port,
                       .expected_peer = "agent:" + host.host.str(), .quota_bytes = host.bytes != 0 ? std::min(host.bytes, memory_bytes) : share, .leaving = host.leaving,
                       .load = {}});
  return servers;
}

class VmInstance final : public workload::Instance {
 public:
  /// `disks_frozen`: the guest's file systems are, until its agent thaws them.
  VmInstance(Vm vm, std::uint16_t port, bool disks_frozen = false) : vm_(std::move(vm)), port_(port), disks_frozen_(disks_frozen) {}

  ~VmInstance() override { end_attendant(); }

  /// It has stood still and runs again: its agent, if there is one, sets its clock, and thaws its disks, whoever has left them frozen.
  /// In a child: a guest may take its time.
  void attend_guest() {
    end_attendant();
    if (!vm_.has_agent().value_or(false)) return;
    auto socket = vm_.connect_agent();
    if (!socket) return log::warn("guest's clock: {}", socket.error().text());
    const auto attend = [&]() -> int {
      // What else the parent has open it may close, and then it must be closed for the others.
      os::Fd kept(::dup2(socket->get(), first_descriptor));
      ::close_range(first_descriptor + 1, ~0U, 0);
      const nanoseconds limit = disks_frozen_ ? frozen_agent_limit : agent_limit;
      auto agent = GuestAgent::open(std::move(kept), limit);
      Status done = agent ? Status() : std::unexpected(agent.error());
      if (done)
        if (const auto thawed = agent->thaw_disks(limit); !thawed) log::error("the guest's file systems may be frozen: {}", thawed.error().text());
      if (done) done = agent->set_time(os::wall_ms() * 1'000'000, limit);
      if (!done) log::warn("guest's clock is late: {}", done.error().text());
      return 0;
    };
    // By its descriptor only: a supervisor reaps any child that it does not know.
    if (auto child = os::fork_child(attend, SIGKILL)) attendant_ = child->release();
    disks_frozen_ = false;
  }

  const os::Pidfd& process() const override { return vm_.process(); }
  Result<std::optional<os::ExitStatus>> reap() override {
    YADO_ASSIGN(const std::optional<End> end, vm_.reap(), "VM");
    if (!end) return std::optional<os::ExitStatus>();
    log::info("QEMU has ended: {}", end->reason);
    why_ended_ = end->reason;
    return std::optional(end->status);
  }
  std::string why_ended() const override { return why_ended_; }
  int output_fd() const override { return const_cast<Vm&>(vm_).console().fd(); }
  std::optional<std::string> read_output() override {
    (void)vm_.take_events();  // or they would pile up
    auto text = vm_.console().read();
    return text ? std::optional(std::move(*text)) : std::nullopt;
  }

  int news_fd() const override { return news_over_ ? -1 : vm_.monitor_fd(); }
  bool stands_for_room() override {
    news_over_ = !vm_.take_events();
    return vm_.stands_for_room();
  }
  Status try_again() override {
    YADO_ASSIGN(const std::string state, vm_.run_state(), "go on");
    return state == "io-error" ? vm_.resume() : Status();
  }

  Result<std::size_t> type(std::string_view text) override { return vm_.console().offer(text); }

  Status granted(std::uint64_t epoch) override { return vm_.own_memory(epoch); }
  // By the group and not by QMP: it must hold when QEMU answers nobody.
  Status freeze() override { return vm_.cgroup().freeze(cgroup_freeze_limit); }
  Status thaw(const std::function<void()>& running) override {
    YADO_TRY(vm_.cgroup().thaw(), "thaw");
    YADO_TRY(vm_.resume(), "thaw");
    if (running) running();
    attend_guest();
    return {};
  }
  Status signal(int) override { return fail(Errc::unsupported, "a VM takes no signals: stop it, or ask its guest"); }
  Result<os::ExitStatus> stop(nanoseconds grace) override {
    YADO_ASSIGN(const bool stands, vm_.cgroup().frozen(), "stop");
    if (stands) YADO_TRY(vm_.cgroup().kill_all(), "stop");
    YADO_ASSIGN(const End end, vm_.stop(grace), "stop");
    return end.status;
  }
  Status kill() override { return vm_.cgroup().kill_all(); }
  Result<os::CgroupUse> stats() const override {
    YADO_ASSIGN(const VmUse use, vm_.stats(), "stats");
    return use.qemu;
  }

  Result<workload::Properties> checkpoint(const workload::PartDirectories& parts, const workload::NewImage& image) const override {
    YADO_ASSIGN(const std::filesystem::path state, part(parts, "device-state"), "checkpoint");
    YADO_ASSIGN(const std::filesystem::path disk, part(parts, "disk"), "checkpoint");
    YADO_ASSIGN(const std::filesystem::path pages, part(parts, "memory"), "checkpoint");
    if (!vm_.pager().empty()) return checkpoint_paged(state, disk, pages, image);
    PagesMemory memory(pages);
    YADO_ASSIGN(Saved saved, vm_.save(state, disk, memory), "checkpoint");
    saved.properties[disks_property] = saved.disks_frozen ? "frozen" : "";
    return std::move(saved.properties);
  }
  bool runs_during_checkpoint() const override { return true; }
  Result<workload::Properties> hand_over(const workload::PartDirectories& parts, const workload::Handover& how) const override {
    if (vm_.pager().empty()) return Instance::hand_over(parts, how);
    YADO_ASSIGN(const std::filesystem::path disk, part(parts, "disk"), "move");
    DisksAhead ahead{.directories = {how.ahead.begin(), how.ahead.end()}};
    if (how.disks_only) {
      YADO_TRY(vm_.seal(disk, ahead.directories), "move");
      return workload::Properties();
    }
    if (how.most_disk_bytes != 0) ahead.most_bytes = how.most_disk_bytes;
    YADO_ASSIGN(const std::filesystem::path state, part(parts, "device-state"), "move");
    LeavingMemory memory({.control = vm_.pager(), .part = state, .to = how.to, .progress = {}});
    YADO_ASSIGN(Saved saved, vm_.save(state, disk, memory, After::paused, ahead), "move");
    if (saved.not_yet) return workload::Properties{{workload::not_yet_property, "it has written more to its disks meanwhile than goes in a moment"}};
    saved.properties[servers_property] = memory.servers();
    saved.properties[rounds_property] = fmt::format("{}; {:.1f} MiB of disks", memory.text(), static_cast<double>(saved.disk_bytes) / (1 << 20));
    return std::move(saved.properties);
  }
  Result<std::string> memory() const override {
    if (vm_.pager().empty()) return Instance::memory();
    return ask_pager(vm_.pager(), R"({"do":"figures"})");
  }
  Status used(const std::string& cut, const std::filesystem::path& into) const override {
    if (vm_.pager().empty()) return Instance::used(cut, into);
    return write_use(vm_.pager(), cut, into);
  }
  Result<std::string> resplit(const Split& split) const override {
    if (vm_.pager().empty()) return Instance::resplit(split);
    YADO_ASSIGN(const auto notes, change_memory_servers(vm_.pager(), split.local_bytes, servers_of(split, vm_.memory_bytes())), "memory");
    YADO_TRY(wait_until_drained(vm_.pager()), "memory");
    return fmt::format("{}", fmt::join(notes, "; "));
  }
  Result<os::ExitStatus> exec(const std::vector<std::string>& command, const workload::ExecIo& io) const override {
    const auto wait = [&](nanoseconds time) -> Status {
      YADO_ASSIGN(const bool ended, vm_.process().ended_within(time), "wait");
      if (ended) return fail(Errc::application, "the VM has ended meanwhile");
      return {};
    };
    YADO_ASSIGN(const GuestRun run, run_in_guest([&] { return vm_.agent(agent_limit); }, wait, command, agent_limit), "exec");
    if (const os::Fd output(io.output < 0 ? -1 : ::fcntl(io.output, F_DUPFD_CLOEXEC, 3)); output.valid()) YADO_TRY(os::write_all(output, run.output), "exec");
    return run.status;
  }
  Result<workload::StartupTimes> wait_startup(nanoseconds already, nanoseconds limit) const override {
    const Instant begun = os::now();
    workload::StartupTimes times;
    const auto passed = [&] { return os::now() - begun; };
    // Nobody outside is told when a guest begins to listen: asked again after a share of the time that has passed.
    const auto wait = [&](nanoseconds time) -> Status {
      if (passed() > limit) return fail(Errc::timed_out, "the guest's start-up is not complete after {:.0f} ms", to_ms(already + limit));
      YADO_ASSIGN(const bool gone, vm_.process().ended_within(time), "start-up");
      if (gone) return fail(Errc::application, "QEMU ended before the guest listened on port {}", port_);
      return {};
    };
    for (;;) {
      YADO_ASSIGN(const bool there, listens(port_, limit), "start-up");
      if (there) break;
      YADO_TRY(wait(std::clamp<nanoseconds>((already + passed()) / 16, 1ms, 100ms)), "start-up");
    }
    times.listening = passed();
    const nanoseconds window = std::max<nanoseconds>((already + times.listening) / 8, 100ms);
    for (;;) {
      YADO_ASSIGN(const os::CgroupUse before, vm_.cgroup().use(), "start-up");
      YADO_TRY(wait(window), "start-up");
      YADO_ASSIGN(const os::CgroupUse after, vm_.cgroup().use(), "start-up");
      if (after.cpu - before.cpu < window * idle_share) break;
    }
    times.settled = passed();
    return times;
  }

 private:
  void end_attendant() {
    if (!attendant_.valid()) return;
    (void)attendant_.send(SIGKILL);
    (void)attendant_.ended_within(std::nullopt);
    (void)attendant_.reap();
    attendant_ = {};
  }
  Result<workload::Properties> checkpoint_paged(const std::filesystem::path& state, const std::filesystem::path& disk,
                                                const std::filesystem::path& pages, const workload::NewImage& image) const {
    const auto cut = image::CutId::of(fmt::format("{} {}", image.name, os::now().time_since_epoch().count()));
    PagedMemory memory({.control = vm_.pager(), .part = pages, .name = image.name, .cut = cut,
                        .base_cut = image::CutId::from_hex(image.base_cut), .base = image.base, .bytes_per_second = image.bytes_per_second, .progress = {}});
    const Instant begun = os::now();
    YADO_ASSIGN(Saved saved, vm_.save(state, disk, memory), "checkpoint");
    YADO_TRY(memory.keep(), "checkpoint");
    if (const Status kept = vm_.kept(saved, cut.hex()); !kept) log::warn("the next image has all of the disks: {}", kept.error().text());
    std::string shares;
    for (const MemoryShare& share : memory.shares())
      shares += fmt::format("{} {} {} {}\n", share.host.empty() ? "-" : share.host, share.pages, share.bytes, share.sum.empty() ? "-" : share.sum);
    saved.properties["cut"] = cut.hex();
    if (!memory.base_cut().none()) saved.properties["base_cut"] = memory.base_cut().hex();
    if (saved.disks_are_delta) saved.properties[disks_are_delta_property] = "1";
    saved.properties["shares"] = shares;
    if (memory.bytes_per_second() != 0) saved.properties["bytes_per_second"] = fmt::format("{}", memory.bytes_per_second());
    saved.properties[disks_property] = saved.disks_frozen ? "frozen" : "";
    saved.properties["pause_us"] = fmt::format("{}", saved.pause.count());
    saved.properties["took_ms"] = fmt::format("{:.0f}", to_ms(os::now() - begun));
    return std::move(saved.properties);
  }

  Vm vm_;
  std::uint16_t port_;
  bool disks_frozen_;
  bool news_over_ = false;
  std::string why_ended_;
  os::Pidfd attendant_;
};

class VmDriver final : public workload::Driver {
 public:
  VmDriver(VmSpec spec, Place place, std::uint16_t port, std::optional<os::Netns> host_network)
      : spec_(std::move(spec)), place_(std::move(place)), port_(port), host_network_(std::move(host_network)) {}

  Result<std::unique_ptr<workload::Instance>> start() override {
    forget_expected();
    YADO_ASSIGN(const Qemu qemu, prepare(), "VM");
    YADO_ASSIGN(Vm vm, Vm::start(spec_, place_, qemu), "VM");
    return std::make_unique<VmInstance>(std::move(vm), port_);
  }
  Result<std::unique_ptr<workload::Instance>> restore(const workload::ImageParts& image, bool frozen) override {
    ImageParts parts{.properties = image.properties};
    YADO_ASSIGN(parts.device_state, part(image.directories, "device-state"), "VM");
    YADO_ASSIGN(parts.disk, part(image.directories, "disk"), "VM");
    for (const auto& [name, directory] : image.directories)
      if (name.starts_with(ahead_prefix) || (name.starts_with(base_prefix) && name.ends_with("/disk"))) parts.ahead.emplace_back(directory);
    const Begin begin = frozen ? Begin::paused : Begin::running;
    Place place = place_;
    const bool inherits = place.paging && image.properties.contains(servers_property);
    if (inherits) YADO_TRY(inherit(*place.paging, image), "VM");
    if (inherits && expected_suits(parts)) {
      Vm vm = *std::exchange(expected_, std::nullopt);
      YADO_TRY(vm.go_on(parts, place.paging->config, begin), "VM");
      return restored(std::move(vm), place, image, frozen);
    }
    forget_expected();
    std::unique_ptr<MemoryPart> memory;
    if (place.paging) {
      // The pager does it, while the guest runs.
      PagedMemory::Options paged;
      const auto cut = image.properties.find("cut");
      if (!inherits && cut != image.properties.end()) paged.cut = image::CutId::from_hex(cut->second);
      memory = std::make_unique<PagedMemory>(std::move(paged));
      if (!inherits) YADO_TRY(use_image(*place.paging, image), "VM");
    } else {
      YADO_ASSIGN(const std::filesystem::path pages, part(image.directories, "memory"), "VM");
      memory = std::make_unique<PagesMemory>(pages);
    }
    YADO_ASSIGN(const Qemu qemu, prepare(), "VM");
    YADO_ASSIGN(Vm vm, Vm::restore(spec_, place, qemu, parts, *memory, begin), "VM");
    return restored(std::move(vm), place, image, frozen);
  }
  Status expect(const std::vector<std::string>& disks_ahead) override {
    YADO_ASSIGN(const Qemu qemu, prepare(), "VM");
    YADO_ASSIGN(Vm vm, Vm::expect(spec_, place_, qemu, {disks_ahead.begin(), disks_ahead.end()}), "VM");
    expected_.emplace(std::move(vm));
    return {};
  }
  void take_over(workload::Driver& other) override {
    if (auto* const vm = dynamic_cast<VmDriver*>(&other)) expected_ = std::exchange(vm->expected_, std::nullopt);
  }
  Status can_checkpoint() const override { return {}; }

 private:
  Result<std::unique_ptr<workload::Instance>> restored(Vm vm, const Place& place, const workload::ImageParts& image, bool frozen) const {
    // Whoever thaws it, once its lease allows, has no time to ask memory servers.
    if (frozen && place.paging) YADO_TRY(vm.own_memory(place.paging->config.epoch), "VM");
    const auto disks = image.properties.find(disks_property);
    auto restored = std::make_unique<VmInstance>(std::move(vm), port_, disks != image.properties.end() && disks->second == "frozen");
    if (frozen) YADO_TRY(restored->freeze(), "VM");
    else restored->attend_guest();
    return restored;
  }
  /// Whether what is ready, if anything is, can go on with this.
  bool expected_suits(const ImageParts& parts) {
    if (!expected_) return false;
    const Status suits = expected_->suits(parts);
    if (!suits) log::warn("{} is restored from the beginning: {}", spec_.name, suits.error().text());
    return suits.has_value();
  }
  void forget_expected() {
    if (!std::exchange(expected_, std::nullopt)) return;
    for (std::size_t i = 0; i < spec_.disks.size(); ++i)
      for (const auto& layer : layers_of(place_.directory, i)) std::filesystem::remove(layer);
  }
  static Status inherit(Paging& paging, const workload::ImageParts& image) {
    YADO_ASSIGN(paging.config.servers, pager::servers_from_text(image.properties.at(servers_property)), "servers");
    YADO_ASSIGN(paging.config.left_in, part(image.directories, "device-state"), "VM");
    return {};
  }
  static Status use_image(Paging& paging, const workload::ImageParts& image) {
    YADO_TRY(part(image.directories, "memory"), "VM");
    std::map<std::string, std::vector<std::filesystem::path>> images;  // "base-00/", …; last "memory": itself
    std::map<std::string, std::vector<std::filesystem::path>> elsewhere;  // by host: parts without logs
    for (const auto& [key, directory] : image.directories) {
      const std::size_t slash = key.find('/');
      const std::string name = slash == std::string::npos ? key : key.substr(slash + 1);
      const bool share = name.starts_with(share_prefix);
      if (!share && name != "memory") continue;
      images[slash == std::string::npos ? "memory" : key.substr(0, slash)].emplace_back(directory);
      if (share && !std::filesystem::exists(std::filesystem::path(directory) / "pages.log"))
        elsewhere[name.substr(share_prefix.size())].emplace_back(directory);
    }
    for (auto& [name, parts] : images) paging.config.image.push_back(std::move(parts));
    if (const auto use = image.directories.find(std::string(use_key)); use != image.directories.end()) paging.config.use = use->second;
    for (pager::ServiceConfig::Server& server : paging.config.servers) {
      const auto load = image.properties.find(std::string(load_prefix) + server.host);
      if (load == image.properties.end()) continue;
      std::istringstream names(load->second);
      server.load = {std::istream_iterator<std::string>(names), {}};
      server.parts = elsewhere[server.host];
    }
    return {};
  }

  Result<Qemu> prepare() const {
    YADO_ASSIGN(const os::Netns here, os::Netns::current(), "network");
    YADO_TRY(net::give_address_to_guest(here), "network");
    Qemu qemu{.accelerator = choose_accelerator()};
    log::info("{} for {}: {}", name_of(qemu.accelerator.kind), spec_.name, qemu.accelerator.why);
    return qemu;
  }

  VmSpec spec_;
  Place place_;
  std::uint16_t port_;
  std::optional<os::Netns> host_network_;
  std::optional<Vm> expected_;
};

/// A guest that is told on its kernel's command line asks nobody; any other one may have been made by any installer.
bool asks_for_address(const yado::VmSpec& spec) { return spec.command_line.find("yado.address=") == std::string::npos; }

Paging paging_of(const yado::VmSpec& spec, const PagerIdentity& pager) {
  Paging paging{.program = pager.program, .config = {}};
  pager::ServiceConfig& config = paging.config;
  config.local_bytes = spec.split->local_bytes;
  config.prefetch_pages = spec.split->prefetch_pages;
  config.copies = copies_of(*spec.split);
  config.parity = has_parity(*spec.split);
  config.save_bytes_per_second = spec.split->checkpoint_bytes_per_second;
  config.session = pager.session;
  config.epoch = pager.epoch;
  config.identity = pager.identity;
  config.servers = servers_of(*spec.split, spec.memory_bytes);
  return paging;
}

}  // namespace

std::unique_ptr<workload::Driver> make_driver(std::string name, const yado::VmSpec& spec, Place place, std::uint16_t port,
                                              const PagerIdentity& pager) {
  VmSpec wanted{.name = std::move(name),
                .kernel = spec.kernel,
                .initramfs = spec.initramfs,
                .kernel_command_line = spec.command_line,
                .memory_bytes = spec.memory_bytes,
                .vcpus = spec.vcpus,
                .disks = {spec.disks.begin(), spec.disks.end()},
                .mac = net::guest_mac(),
                .dhcp = asks_for_address(spec),
                .cpus = spec.cpus};
  place.bridge = net::guest_bridge;
  std::optional<os::Netns> host_network;
  if (spec.split) {
    place.paging = paging_of(spec, pager);
    if (auto here = os::Netns::current()) host_network = std::move(*here);
    if (host_network) place.paging->network_namespace = host_network->fd().get();
  }
  return std::make_unique<VmDriver>(std::move(wanted), std::move(place), port, std::move(host_network));
}

}  // namespace yado::vm
