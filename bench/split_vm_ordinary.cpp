// Checkpoints by QEMU's own migration into a file on one host. The ways differ in how the file is named, in what is switched on for
// it, on both sides, and in whether the guest's memory is split: then every page of it must come to this host first, and go
// away again when it is restored.
//
// A live migration ends by itself when what is left can be sent within QEMU's downtime limit (300 ms, its default). Under a writer that
// is faster than the disk it never is; so the guest is stopped at the beginning of the second pass. Later ones would find as many pages
// written again: the checkpoint would be longer for each, and the pause not shorter.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "os/clock.hpp"
#include "os/file.hpp"
#include "split_vm_hosts.hpp"
#include "split_vm_qemu.hpp"
#include "split_vm_variant.hpp"
#include "workload/vm/device_state.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;
using json = nlohmann::json;

constexpr int last_pass = 1;

struct Method {
  std::string name;
  fs::path system;                        ///< QEMU
  std::vector<std::string> capabilities;  ///< on both sides
  json parameters = json::object();
  bool split = false;
  bool by_path = false;                   ///< QEMU opens the file itself (file:PATH); else it gets it open (fd:NAME)
  std::string why_not;
};

double seconds_since(Instant begun) { return to_ms(os::now() - begun) / 1000; }

/// A file of an image; removed with this object.
class ImageFile {
 public:
  static Result<ImageFile> create(const fs::path& path) {
    ImageFile file(path);
    YADO_ASSIGN(file.fd_, os::open_path(path, O_RDWR | O_CREAT | O_EXCL, 0600), "image");
    return file;
  }
  ImageFile(ImageFile&& other) noexcept : path_(std::exchange(other.path_, {})), fd_(std::move(other.fd_)) {}
  ~ImageFile() {
    if (!path_.empty()) ::unlink(path_.c_str());
  }

  const fs::path& path() const { return path_; }
  const os::Fd& fd() const { return fd_; }
  Status sync() const { return ::fsync(fd_.get()) < 0 ? Status(fail_errno("fsync the image")) : Status(); }
  /// A restore begins with cold caches, as on the morning after.
  Status forget_cached() const {
    if (const int error = ::posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED); error != 0) return fail_errno(error, "forget the image's pages");
    if (::lseek(fd_.get(), 0, SEEK_SET) < 0) return fail_errno("rewind the image");
    return {};
  }
  std::uint64_t bytes() const {
    struct stat status {};
    return ::fstat(fd_.get(), &status) < 0 ? 0 : static_cast<std::uint64_t>(status.st_blocks) * 512;
  }

 private:
  explicit ImageFile(fs::path path) : path_(std::move(path)) {}
  fs::path path_;
  os::Fd fd_;
};

/// QEMU, and what it needs when its memory is split. Ends in the right order.
struct Guest {
  std::optional<SplitHosts> hosts;
  std::optional<vm::PagerProcess> pager;
  std::unique_ptr<OrdinaryVm> vm;
};

class Ordinary final : public Variant {
 public:
  Ordinary(const VariantOptions& options, Method method)
      : method_(std::move(method)), qemu_(options.qemu), spec_(writer_spec(options.guest, options.memory_bytes)) {
    qemu_.system = method_.system;
  }
  std::string name() const override { return method_.name; }
  std::string why_not() const override { return method_.why_not; }
  bool splits() const override { return method_.split; }
  bool prefetches() const override { return method_.split; }

  Result<Outcome> measure(Rig& rig, const Case& one) override {
    const HostId& host = rig.hosts().front();
    YADO_ASSIGN(const WorkDirectories work, WorkDirectories::create(rig), name());
    YADO_ASSIGN(const ImageFile image, ImageFile::create(rig.disk(host) / "image"), name());
    Outcome outcome;
    YADO_TRY(save(rig, work, one, image, outcome), "checkpoint");
    YADO_TRY(image.forget_cached(), "restore");
    const Status restored = restore(rig, work, one, image, outcome);
    if (restored) return outcome;
    // The guest panics, stands still, or finds wrong words. Seen of live migrations under TCG with QEMU 7.2, which loses writes now and then.
    if (restored.error().code != Errc::timed_out && restored.error().code != Errc::corrupt) return context(restored.error(), "restore");
    outcome.wrong = restored.error().message;
    return outcome;
  }

 private:
  Result<Guest> start(Rig& rig, const WorkDirectories& work, const Case& one, const std::string& as, OrdinaryVm::Begin begin) const {
    Guest guest;
    if (method_.split) {
      const fs::path directory = work.of(0) / as;
      std::error_code error;
      if (!fs::create_directory(directory, error)) return fail_errno(error.value(), "make " + directory.native());
      YADO_ASSIGN(SplitHosts hosts, SplitHosts::start(rig, work, one.hosts, spec_.memory_bytes), "hosts");
      guest.hosts.emplace(std::move(hosts));
      YADO_ASSIGN(guest.pager, vm::PagerProcess::start(guest.hosts->paging(one.prefetch_pages()), directory, spec_.memory_bytes), "pager");
    }
    YADO_ASSIGN(guest.vm, OrdinaryVm::start(spec_, qemu_, rig.cgroup(rig.hosts().front(), as), begin, guest.pager ? &*guest.pager : nullptr), "VM");
    return guest;
  }

  Status prepare(OrdinaryVm& vm) const {
    json capabilities = json::array();
    for (const std::string& one : method_.capabilities) capabilities.push_back({{"capability", one}, {"state", true}});
    YADO_TRY(vm.execute("migrate-set-capabilities", json{{"capabilities", capabilities}}.dump()), "prepare");
    if (!method_.parameters.empty()) YADO_TRY(vm.execute("migrate-set-parameters", method_.parameters.dump()), "prepare");
    return {};
  }

  Status begin(OrdinaryVm& vm, const std::string& command, const ImageFile& image) const {
    if (!method_.by_path) YADO_TRY(vm.hand_over(image.fd(), "image"), command);
    const std::string uri = method_.by_path ? "file:" + image.path().native() : "fd:image";
    YADO_TRY(vm.execute(command, json{{"uri", uri}}.dump()), command);
    return {};
  }

  Status save(Rig& rig, const WorkDirectories& work, const Case& one, const ImageFile& image, Outcome& outcome) const {
    YADO_ASSIGN(const Guest started, start(rig, work, one, "guest", OrdinaryVm::Begin::boot), "boot");
    const auto& vm = started.vm;
    YADO_TRY(vm->execute("cont"), "boot");
    WriterGuest guest(vm->console());
    YADO_TRY(guest.wait_up(), "boot");
    YADO_TRY(guest.fill(), "boot");
    YADO_TRY(prepare(*vm), "boot");
    YADO_TRY(guest.standstill(), "before");
    YADO_TRY(guest.rewrite(one.load.share_percent), "before");
    YADO_ASSIGN(const Traffic before, rig.traffic(), "before");

    const Instant begun = os::now();
    if (!one.load.live) YADO_TRY(vm->execute("stop"), "stop");
    YADO_TRY(begin(*vm, "migrate", image), "save");
    YADO_TRY(vm->wait_migrated(one.load.live ? last_pass : 0), "save");
    if (one.load.live) YADO_TRY(vm::resume(vm->monitor(), qemu_.limit), "go on");
    YADO_TRY(image.sync(), "save");
    outcome.checkpoint_s = seconds_since(begun);
    if (!one.load.live) YADO_TRY(vm::resume(vm->monitor(), qemu_.limit), "go on");

    YADO_ASSIGN(const Traffic after, rig.traffic(), "after");
    outcome.checkpoint = after - before;
    outcome.bytes_image = image.bytes();
    YADO_ASSIGN(outcome.standstill, guest.standstill(), "after");
    return guest.verify();
  }

  Status restore(Rig& rig, const WorkDirectories& work, const Case& one, const ImageFile& image, Outcome& outcome) const {
    const Instant begun = os::now();
    YADO_ASSIGN(const Guest started, start(rig, work, one, "restored", OrdinaryVm::Begin::incoming), "start");
    const auto& vm = started.vm;
    YADO_TRY(prepare(*vm), "prepare");
    WriterGuest guest(vm->console());
    YADO_TRY(begin(*vm, "migrate-incoming", image), "load");
    YADO_TRY(vm->wait_migrated(), "load");
    outcome.restore_all_s = seconds_since(begun);
    // Not earlier: what the serial port had received would be overwritten by the state that is loaded.
    YADO_TRY(guest.ping("first"), "run");
    YADO_TRY(vm->execute("cont"), "run");
    YADO_ASSIGN(const Instant answered, guest.wait_pong("first"), "run");
    outcome.restore_run_s = to_ms(answered - begun) / 1000;
    return guest.verify();
  }

  Method method_;
  vm::Qemu qemu_;
  vm::VmSpec spec_;
};

}  // namespace

std::unique_ptr<Variant> conventional_ordinary(const VariantOptions& options) {
  return std::make_unique<Ordinary>(options, Method{.name = "conventional-ordinary", .system = options.qemu.system, .capabilities = {}, .why_not = {}});
}

std::unique_ptr<Variant> conventional_split(const VariantOptions& options) {
  return std::make_unique<Ordinary>(options, Method{.name = "conventional-split", .system = options.qemu.system, .capabilities = {}, .split = true, .why_not = {}});
}

std::unique_ptr<Variant> mapped_ram(const VariantOptions& options) {
  Method method{.name = "mapped-ram", .system = options.new_qemu, .capabilities = {"mapped-ram", "multifd"},
                .parameters = {{"multifd-channels", 2}, {"direct-io", true}}, .by_path = true, .why_not = {}};
  if (::access(method.system.c_str(), X_OK) != 0)
    method.why_not = fmt::format("no QEMU 9.1 or later at \"{}\" (YADO_NEW_QEMU): tools/install-qemu says why", options.new_qemu.native());
  return std::make_unique<Ordinary>(options, std::move(method));
}

}  // namespace yado::bench
