#include "workload/vm/driver.hpp"

#include <algorithm>
#include <iterator>
#include <sstream>

#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include "base/log.hpp"
#include "net/guest_network.hpp"
#include "net/host_network.hpp"
#include "os/clock.hpp"
#include "workload/vm/disk.hpp"
#include "workload/vm/pages_memory.hpp"
#include "workload/vm/vm.hpp"

namespace yado::vm {
namespace {

constexpr nanoseconds freeze_limit = 10s;

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

unsigned copies_of(const Split& split) { return split.redundancy == Redundancy::replica ? 2 : 1; }

/// Those without a size share evenly what the others leave, each page as often as is wanted; room for half as much again, because regions
/// are not equally full.
std::vector<pager::ServiceConfig::Server> servers_of(const Split& split, std::uint64_t memory_bytes) {
  std::uint64_t rest = memory_bytes * copies_of(split), hosts = 0;
  for (const MemoryHost& host : split.over) {
    rest -= std::min(rest, host.bytes);
    hosts += host.bytes == 0;
  }
  const std::uint64_t share = std::min(memory_bytes, rest / std::max<std::uint64_t>(hosts, 1) * 3 / 2) / 4096 * 4096;
  std::vector<pager::ServiceConfig::Server> servers;
  for (const MemoryHost& host : split.over)
    servers.push_back({.host = host.host.str(), .unix_path = {}, .address = host.address, .port = host.port,
                       .expected_peer = "agent:" + host.host.str(), .quota_bytes = host.bytes != 0 ? host.bytes : share, .load = {}});
  return servers;
}

class VmInstance final : public workload::Instance {
 public:
  VmInstance(Vm vm, std::uint16_t port) : vm_(std::move(vm)), port_(port) {}

  const os::Pidfd& process() const override { return vm_.process(); }
  Result<std::optional<os::ExitStatus>> reap() override {
    YADO_ASSIGN(const std::optional<End> end, vm_.reap(), "VM");
    if (!end) return std::optional<os::ExitStatus>();
    log::info("QEMU has ended: {}", end->reason);
    return std::optional(end->status);
  }
  int output_fd() const override { return const_cast<Vm&>(vm_).console().fd(); }
  std::optional<std::string> read_output() override {
    (void)vm_.take_events();  // or they would pile up
    auto text = vm_.console().read();
    return text ? std::optional(std::move(*text)) : std::nullopt;
  }

  // By the group and not by QMP: it must hold when QEMU answers nobody.
  Status freeze() override { return vm_.cgroup().freeze(freeze_limit); }
  Status thaw(const std::function<void()>& running) override {
    YADO_TRY(vm_.cgroup().thaw(), "thaw");
    YADO_TRY(vm_.resume(), "thaw");
    if (running) running();
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
    return std::move(saved.properties);
  }
  bool runs_during_checkpoint() const override { return true; }
  Result<workload::Properties> hand_over(const workload::PartDirectories& parts, const std::string& to) const override {
    if (vm_.pager().empty()) return Instance::hand_over(parts, to);
    YADO_ASSIGN(const std::filesystem::path state, part(parts, "device-state"), "move");
    YADO_ASSIGN(const std::filesystem::path disk, part(parts, "disk"), "move");
    LeavingMemory memory({.control = vm_.pager(), .part = state, .to = to, .progress = {}});
    YADO_ASSIGN(Saved saved, vm_.save(state, disk, memory, After::paused), "move");
    saved.properties[servers_property] = memory.servers();
    saved.properties[rounds_property] = memory.text();
    return std::move(saved.properties);
  }
  Result<std::string> memory() const override {
    if (vm_.pager().empty()) return Instance::memory();
    return ask_pager(vm_.pager(), R"({"do":"figures"})");
  }
  Result<std::string> resplit(const Split& split) const override {
    if (vm_.pager().empty()) return Instance::resplit(split);
    YADO_ASSIGN(const auto notes, change_memory_servers(vm_.pager(), split.local_bytes, servers_of(split, vm_.memory_bytes())), "memory");
    YADO_TRY(wait_until_drained(vm_.pager()), "memory");
    return fmt::format("{}", fmt::join(notes, "; "));
  }
  Result<os::ExitStatus> exec(const std::vector<std::string>&, const workload::ExecIo&) const override {
    return fail(Errc::unsupported, "exec does not reach into a VM: ask its service, or see `yado logs` for its console");
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
  Result<workload::Properties> checkpoint_paged(const std::filesystem::path& state, const std::filesystem::path& disk,
                                                const std::filesystem::path& pages, const workload::NewImage& image) const {
    const auto cut = image::CutId::of(fmt::format("{} {}", image.name, os::now().time_since_epoch().count()));
    PagedMemory memory({.control = vm_.pager(), .part = pages, .name = image.name, .cut = cut,
                        .base_cut = image::CutId::from_hex(image.base_cut), .base = image.base, .progress = {}});
    const Instant begun = os::now();
    YADO_ASSIGN(Saved saved, vm_.save(state, disk, memory), "checkpoint");
    YADO_TRY(memory.keep(), "checkpoint");
    std::string shares;
    for (const MemoryShare& share : memory.shares())
      shares += fmt::format("{} {} {} {}\n", share.host.empty() ? "-" : share.host, share.pages, share.bytes, share.sum.empty() ? "-" : share.sum);
    saved.properties["cut"] = cut.hex();
    if (!memory.base_cut().none()) saved.properties["base_cut"] = memory.base_cut().hex();
    saved.properties["shares"] = shares;
    saved.properties["pause_us"] = fmt::format("{}", saved.pause.count());
    saved.properties["took_ms"] = fmt::format("{:.0f}", to_ms(os::now() - begun));
    return std::move(saved.properties);
  }

  Vm vm_;
  std::uint16_t port_;
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
    Place place = place_;
    if (expected_ && place.paging && image.properties.contains(servers_property)) {
      YADO_TRY(inherit(*place.paging, image), "VM");
      YADO_ASSIGN(auto gone_on, go_on_in_expected(parts, place.paging->config, frozen), "VM");
      if (gone_on) return gone_on;
    }
    forget_expected();
    std::unique_ptr<MemoryPart> memory;
    if (place.paging) {
      // The pager does it, while the guest runs.
      memory = std::make_unique<PagedMemory>(PagedMemory::Options{});
      YADO_TRY(image.properties.contains(servers_property) ? inherit(*place.paging, image) : use_image(*place.paging, image), "VM");
    } else {
      YADO_ASSIGN(const std::filesystem::path pages, part(image.directories, "memory"), "VM");
      memory = std::make_unique<PagesMemory>(pages);
    }
    YADO_ASSIGN(const Qemu qemu, prepare(), "VM");
    YADO_ASSIGN(Vm vm, Vm::restore(spec_, place, qemu, parts, *memory, frozen ? Begin::paused : Begin::running), "VM");
    return restored(std::move(vm), frozen);
  }
  Status expect() override {
    YADO_ASSIGN(const Qemu qemu, prepare(), "VM");
    YADO_ASSIGN(Vm vm, Vm::expect(spec_, place_, qemu), "VM");
    expected_.emplace(std::move(vm));
    return {};
  }
  void take_over(workload::Driver& other) override {
    if (auto* const vm = dynamic_cast<VmDriver*>(&other)) expected_ = std::exchange(vm->expected_, std::nullopt);
  }
  Status can_checkpoint() const override { return {}; }

 private:
  Result<std::unique_ptr<workload::Instance>> restored(Vm vm, bool frozen) const {
    auto instance = std::make_unique<VmInstance>(std::move(vm), port_);
    if (frozen) YADO_TRY(instance->freeze(), "VM");
    return instance;
  }
  /// Null: it is not the one that was expected, and nothing has happened.
  Result<std::unique_ptr<workload::Instance>> go_on_in_expected(const ImageParts& parts, const pager::ServiceConfig& heritage, bool frozen) {
    YADO_ASSIGN(const auto ended, expected_->reap(), "expected");
    if (const Status suits = ended ? fail(Errc::application, "QEMU has ended: {}", ended->reason) : expected_->suits(parts); !suits) {
      log::warn("{} is restored from the beginning: {}", spec_.name, suits.error().text());
      return std::unique_ptr<workload::Instance>();
    }
    Vm vm = std::move(*expected_);
    expected_.reset();
    YADO_TRY(vm.go_on(parts, heritage, frozen ? Begin::paused : Begin::running), "expected");
    return restored(std::move(vm), frozen);
  }
  void forget_expected() {
    if (!std::exchange(expected_, std::nullopt)) return;
    for (std::size_t i = 0; i < spec_.disks.size(); ++i)
      for (const auto& layer : layers_of(place_.directory, i)) std::filesystem::remove(layer);
  }
  static Status inherit(Paging& paging, const workload::ImageParts& image) {
    YADO_ASSIGN(paging.config.servers, pager::servers_from_text(image.properties.at(servers_property)), "servers");
    YADO_ASSIGN(paging.config.working_set, part(image.directories, "device-state"), "VM");
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

Paging paging_of(const yado::VmSpec& spec, const PagerIdentity& pager) {
  Paging paging{.program = pager.program, .config = {}};
  pager::ServiceConfig& config = paging.config;
  config.local_bytes = spec.split->local_bytes;
  config.prefetch_pages = spec.split->prefetch_pages;
  config.copies = copies_of(*spec.split);
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
