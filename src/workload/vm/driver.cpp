#include "workload/vm/driver.hpp"

#include "base/log.hpp"
#include "net/guest_network.hpp"
#include "workload/vm/vm.hpp"

namespace yado::vm {
namespace {

constexpr nanoseconds freeze_limit = 10s;

std::unexpected<Error> no_images() {
  return fail(Errc::unsupported, "images of VMs are not built yet: a VM is started cold, from its base disks");
}

class VmInstance final : public workload::Instance {
 public:
  explicit VmInstance(Vm vm) : vm_(std::move(vm)) {}

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

  Result<workload::Properties> checkpoint(const workload::PartDirectories&) const override { return no_images(); }
  Result<os::ExitStatus> exec(const std::vector<std::string>&, const workload::ExecIo&) const override {
    return fail(Errc::unsupported, "exec does not reach into a VM: ask its service, or see `yado logs` for its console");
  }
  Result<workload::StartupTimes> wait_startup(nanoseconds, nanoseconds) const override { return no_images(); }

 private:
  Vm vm_;
};

class VmDriver final : public workload::Driver {
 public:
  VmDriver(VmSpec spec, Place place) : spec_(std::move(spec)), place_(std::move(place)) {}

  Result<std::unique_ptr<workload::Instance>> start() override {
    YADO_ASSIGN(const os::Netns here, os::Netns::current(), "VM");
    YADO_TRY(net::give_address_to_guest(here), "VM");
    const Qemu qemu{.accelerator = choose_accelerator()};
    log::info("{} for {}: {}", name_of(qemu.accelerator.kind), spec_.name, qemu.accelerator.why);
    YADO_ASSIGN(Vm vm, Vm::start(spec_, place_, qemu), "VM");
    return std::make_unique<VmInstance>(std::move(vm));
  }
  Result<std::unique_ptr<workload::Instance>> restore(const workload::ImageParts&, bool) override { return no_images(); }
  Status can_checkpoint() const override { return no_images(); }

 private:
  VmSpec spec_;
  Place place_;
};

}  // namespace

std::unique_ptr<workload::Driver> make_driver(std::string name, const yado::VmSpec& spec, Place place) {
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
  return std::make_unique<VmDriver>(std::move(wanted), std::move(place));
}

}  // namespace yado::vm
