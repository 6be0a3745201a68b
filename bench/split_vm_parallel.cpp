// Our checkpoints of a split VM: all hosts save what they hold, at once, while the guest runs; restored over hosts that kept nothing
// but their images. The guest runs as soon as its devices are there; pages come from the images when they are touched, and in the
// background.

#include <algorithm>
#include <thread>

#include <nlohmann/json.hpp>

#include "os/clock.hpp"
#include "split_vm_hosts.hpp"
#include "split_vm_image.hpp"
#include "split_vm_variant.hpp"
#include "workload/vm/vm.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;

constexpr const char* part_index = "pages.index";
constexpr unsigned incremental_share_percent = 10;  // that a guest writes between two checkpoints when it is stopped for them
constexpr auto look_every = 10ms;                   // how exact restore_all_s is
constexpr auto restore_limit = 300s;                // keeps a broken run from hanging

double seconds_since(Instant begun) { return to_ms(os::now() - begun) / 1000; }

Status make_directory(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return fail_errno(error.value(), "make " + path.native());
  return {};
}

/// What the images' directories hold beside their own: of other hosts' parts the indices, without which a chain says nothing of pages that moved.
Status copy_index(const fs::path& from, const fs::path& to) {
  YADO_TRY(make_directory(to), "index");
  std::error_code error;
  fs::copy_file(from / part_index, to / part_index, fs::copy_options::overwrite_existing, error);
  if (error) return fail_errno(error.value(), "copy the index of " + from.native());
  return {};
}

Result<std::uint64_t> local_bytes(const fs::path& pager) {
  YADO_ASSIGN(const std::string text, vm::ask_pager(pager, R"({"do":"figures"})"), "pager");
  return nlohmann::json::parse(text).value("local_bytes", std::uint64_t{0});
}

class Parallel final : public Variant {
 public:
  Parallel(const VariantOptions& options, bool incremental)
      : incremental_(incremental), qemu_(options.qemu), spec_(writer_spec(options.guest, options.memory_bytes)) {}
  std::string name() const override { return incremental_ ? "yado-incremental" : "yado"; }
  bool splits() const override { return true; }

  Result<Outcome> measure(Rig& rig, const Case& one) override {
    YADO_ASSIGN(const WorkDirectories work, WorkDirectories::create(rig), name());
    Outcome outcome;
    YADO_ASSIGN(const std::vector<SplitImage> chain, save(rig, work, one, outcome), "checkpoint");
    YADO_TRY(work.forget_cached(), "restore");
    YADO_TRY(restore(rig, work, one, chain, outcome), "restore");
    return outcome;
  }

 private:
  Result<vm::Place> place(const Rig& rig, const WorkDirectories& work, const SplitHosts& hosts, const Case& one, const std::string& as) const {
    vm::Place made{.directory = work.of(0) / as, .cgroup = rig.cgroup(rig.hosts().front(), as), .network_namespace = -1, .bridge = {}, .paging = hosts.paging(one.prefetch_pages())};
    YADO_TRY(make_directory(made.directory), "VM");
    return made;
  }

  Result<std::vector<SplitImage>> save(Rig& rig, const WorkDirectories& work, const Case& one, Outcome& outcome) const {
    YADO_ASSIGN(const SplitHosts hosts, SplitHosts::start(rig, work, one.hosts, spec_.memory_bytes), "hosts");
    YADO_ASSIGN(const vm::Place where, place(rig, work, hosts, one, "guest"), "boot");
    YADO_ASSIGN(vm::Vm vm, vm::Vm::start(spec_, where, qemu_), "boot");
    WriterGuest guest(vm.console());
    YADO_TRY(guest.wait_up(), "boot");
    YADO_TRY(guest.fill(), "boot");
    std::vector<SplitImage> chain;
    if (incremental_) {
      YADO_ASSIGN(SplitImage first, take_image(vm, work, "first", nullptr), "base");
      chain.push_back(std::move(first));
      if (!one.load.live) YADO_TRY(guest.rewrite(incremental_share_percent), "before");
    }
    YADO_TRY(guest.rewrite(one.load.live ? one.load.share_percent : 0), "before");
    YADO_TRY(guest.standstill(), "before");
    YADO_ASSIGN(const Traffic before, rig.traffic(), "before");

    const Instant begun = os::now();
    if (!one.load.live) YADO_TRY(vm.pause(), "stop");
    YADO_ASSIGN(SplitImage image, take_image(vm, work, chain.empty() ? "first" : "second", chain.empty() ? nullptr : &chain.back()), "save");
    outcome.checkpoint_s = seconds_since(begun);
    if (!one.load.live) YADO_TRY(vm.resume(), "go on");

    YADO_ASSIGN(const Traffic after, rig.traffic(), "after");
    outcome.checkpoint = after - before;
    outcome.bytes_image = work.bytes_of(image.name);
    YADO_ASSIGN(outcome.standstill, guest.standstill(), "after");
    YADO_TRY(guest.verify(), "after");
    chain.push_back(std::move(image));
    if (incremental_) YADO_TRY(spread_indices(work, hosts, chain), "indices");
    return chain;
  }

  static fs::path share_of(const SplitHosts& hosts, std::size_t server, const std::string& image) {
    const std::string& host = hosts.servers()[server].str();
    return hosts.store(server) / (image + "." + host) / ("pages-" + host);
  }

  static Status spread_indices(const WorkDirectories& work, const SplitHosts& hosts, const std::vector<SplitImage>& chain) {
    for (const SplitImage& image : chain)
      for (std::size_t i = 0; i < hosts.servers().size(); ++i) {
        const fs::path share = share_of(hosts, i, image.name), beside = share.parent_path();
        YADO_TRY(copy_index(share, image.directory / share.filename()), "main host");
        YADO_TRY(copy_index(image.directory / "memory", beside / "pages-main"), "server");
        for (std::size_t other = 0; other < hosts.servers().size(); ++other)
          if (const fs::path from = share_of(hosts, other, image.name); other != i) YADO_TRY(copy_index(from, beside / from.filename()), "server");
      }
    return {};
  }

  /// Every host has its share in its own store.
  void use(const std::vector<SplitImage>& chain, const WorkDirectories& work, const SplitHosts& hosts, vm::Paging& paging) const {
    for (const SplitImage& image : chain) {
      auto& parts = paging.config.image.emplace_back(std::vector<fs::path>{image.directory / "memory"});
      for (std::size_t i = 0; i < hosts.servers().size(); ++i) {
        if (incremental_) parts.push_back(image.directory / share_of(hosts, i, image.name).filename());
        paging.config.servers[i].load.push_back(image.name + "." + hosts.servers()[i].str());
      }
    }
  }

  /// Until no server has anything left to read, and the main host is as full as it gets: a pager keeps up to an eighth of its share free.
  Status wait_all_in(SplitHosts& hosts, const vm::Vm& vm, const std::vector<SplitImage>& chain, std::uint64_t local_limit) const {
    std::uint64_t saved_here = 0;
    for (const SplitImage& image : chain)
      for (const vm::MemoryShare& share : image.shares) saved_here += share.host.empty() ? share.bytes : 0;
    const std::uint64_t full = std::min(saved_here, local_limit) / 8 * 7;
    for (const Instant deadline = os::now() + restore_limit; os::now() < deadline; std::this_thread::sleep_for(look_every)) {
      YADO_ASSIGN(const std::uint64_t left, hosts.pages_on_disk(), "restore");
      YADO_ASSIGN(const std::uint64_t here, local_bytes(vm.pager()), "restore");
      if (left == 0 && here >= full) return {};
    }
    return fail(Errc::timed_out, "its memory is not in after {} s", restore_limit.count());
  }

  Status restore(Rig& rig, const WorkDirectories& work, const Case& one, const std::vector<SplitImage>& chain, Outcome& outcome) const {
    const Instant begun = os::now();
    YADO_ASSIGN(SplitHosts hosts, SplitHosts::start(rig, work, one.hosts, spec_.memory_bytes), "hosts");
    YADO_ASSIGN(vm::Place where, place(rig, work, hosts, one, "restored"), "VM");
    use(chain, work, hosts, *where.paging);
    const fs::path& directory = chain.back().directory;
    vm::PagedMemory by_the_pager({});
    YADO_ASSIGN(vm::Vm vm, vm::Vm::restore(spec_, where, qemu_, {directory / "device-state", directory / "disk", chain.back().saved.properties}, by_the_pager, vm::Begin::paused), "VM");
    WriterGuest guest(vm.console());
    YADO_TRY(guest.ping("first"), "run");
    YADO_TRY(vm.resume(), "run");
    YADO_ASSIGN(const Instant answered, guest.wait_pong("first"), "run");
    outcome.restore_run_s = to_ms(answered - begun) / 1000;
    YADO_TRY(wait_all_in(hosts, vm, chain, where.paging->config.local_bytes), "load");
    outcome.restore_all_s = seconds_since(begun);
    YADO_ASSIGN(const Standstill meanwhile, guest.standstill(), "run");
    outcome.restore_gap_ms = meanwhile.longest_ms;
    return guest.verify();
  }

  bool incremental_;
  vm::Qemu qemu_;
  vm::VmSpec spec_;
};

}  // namespace

std::unique_ptr<Variant> parallel_split(const VariantOptions& options, bool incremental) { return std::make_unique<Parallel>(options, incremental); }

}  // namespace yado::bench
