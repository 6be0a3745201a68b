#include "workload/vm/accelerator.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "base/error.hpp"
#include "base/time.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"

namespace yado::vm {
namespace {

constexpr std::size_t memory_bytes = 64 << 10;
constexpr std::uint64_t code_at = 0x1000;
constexpr std::uint64_t task_state_at = 0xfffbd000;  // three pages that Intel's virtual real mode wants, out of the way
constexpr std::uint64_t most_rounds = 1 << 16;
constexpr nanoseconds long_enough = 5ms;  // a run this long is judged and not repeated with more rounds
constexpr int tries = 3;                  // the best of them counts: the others may have been interrupted
constexpr double interpreted_from = 50;   // times as slow as here; real hardware is within 2, interpreters beyond 500

/// Memory that is unmapped at the end.
class Mapped {
 public:
  static Result<Mapped> make(std::size_t bytes, int flags, int fd) {
    void* at = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (at == MAP_FAILED) return fail_errno("mmap");
    return Mapped(at, bytes);
  }
  Mapped(Mapped&& other) noexcept : at_(std::exchange(other.at_, nullptr)), bytes_(other.bytes_) {}
  Mapped& operator=(Mapped&& other) noexcept {
    std::swap(at_, other.at_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Mapped() {
    if (at_ != nullptr) ::munmap(at_, bytes_);
  }
  void* get() const { return at_; }

 private:
  Mapped(void* at, std::size_t bytes) : at_(at), bytes_(bytes) {}
  void* at_;
  std::size_t bytes_;
};

Result<int> control(const os::Fd& fd, unsigned long request, std::uintptr_t argument, const char* name) {
  for (;;) {
    const int answer = ::ioctl(fd.get(), request, argument);
    if (answer >= 0) return answer;
    if (errno != EINTR) return fail_errno(name);  // KVM_CREATE_VM is interrupted by any signal
  }
}
template <class T>
Result<int> control(const os::Fd& fd, unsigned long request, T* argument, const char* name) {
  return control(fd, request, reinterpret_cast<std::uintptr_t>(argument), name);
}

/// A guest whose only program counts down in 32-bit protected mode, ring 0, and halts.
struct CountingGuest {
  Mapped memory;
  os::Fd vm, vcpu;
  Mapped run;

  static Result<CountingGuest> make() {
    YADO_ASSIGN(const os::Fd kvm, os::open_path("/dev/kvm", O_RDWR), "KVM");
    YADO_ASSIGN(const int version, control(kvm, KVM_GET_API_VERSION, std::uintptr_t{0}, "KVM_GET_API_VERSION"), "KVM");
    if (version != KVM_API_VERSION) return fail(Errc::unsupported, "KVM has API version {}", version);
    YADO_ASSIGN(Mapped memory, Mapped::make(memory_bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1), "KVM");
    YADO_ASSIGN(const int vm_number, control(kvm, KVM_CREATE_VM, std::uintptr_t{0}, "KVM_CREATE_VM"), "KVM");
    os::Fd vm(vm_number);
    YADO_TRY(control(vm, KVM_SET_TSS_ADDR, std::uintptr_t{task_state_at}, "KVM_SET_TSS_ADDR"), "KVM");
    kvm_userspace_memory_region region{};
    region.memory_size = memory_bytes;
    region.userspace_addr = reinterpret_cast<std::uintptr_t>(memory.get());
    YADO_TRY(control(vm, KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION"), "KVM");
    YADO_ASSIGN(const int vcpu_number, control(vm, KVM_CREATE_VCPU, std::uintptr_t{0}, "KVM_CREATE_VCPU"), "KVM");
    os::Fd vcpu(vcpu_number);
    YADO_ASSIGN(const int run_bytes, control(kvm, KVM_GET_VCPU_MMAP_SIZE, std::uintptr_t{0}, "KVM_GET_VCPU_MMAP_SIZE"), "KVM");
    YADO_ASSIGN(Mapped run, Mapped::make(static_cast<std::size_t>(run_bytes), MAP_SHARED, vcpu.get()), "KVM");

    constexpr unsigned char code[] = {0x49, 0x75, 0xfd, 0xf4};  // 1: dec ecx; jnz 1b; hlt
    std::memcpy(static_cast<char*>(memory.get()) + code_at, code, sizeof code);
    kvm_sregs sregs{};
    YADO_TRY(control(vcpu, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS"), "KVM");
    kvm_segment flat{};
    flat.limit = 0xffffffff;
    flat.present = flat.db = flat.s = flat.g = 1;
    flat.selector = 0x10;
    flat.type = 3;  // data, written and accessed
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat;
    flat.selector = 0x08;
    flat.type = 11;  // code, readable and accessed
    sregs.cs = flat;
    sregs.cr0 |= 1;  // protection on
    YADO_TRY(control(vcpu, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS"), "KVM");
    return CountingGuest{std::move(memory), std::move(vm), std::move(vcpu), std::move(run)};
  }

  Result<nanoseconds> count(std::uint64_t rounds) const {
    kvm_regs regs{};
    regs.rip = code_at;
    regs.rcx = rounds;
    regs.rflags = 2;
    YADO_TRY(control(vcpu, KVM_SET_REGS, &regs, "KVM_SET_REGS"), "KVM");
    const Instant start = os::now();
    YADO_TRY(control(vcpu, KVM_RUN, std::uintptr_t{0}, "KVM_RUN"), "KVM");
    const nanoseconds took = os::now() - start;
    const std::uint32_t reason = static_cast<const kvm_run*>(run.get())->exit_reason;
    if (reason != KVM_EXIT_HLT) return fail(Errc::unsupported, "KVM left a counting loop with exit reason {}", reason);
    return took;
  }
};

nanoseconds count_here(std::uint64_t rounds) {
  const Instant start = os::now();
  asm volatile("1: dec %0; jnz 1b" : "+r"(rounds) : : "cc");
  return os::now() - start;
}

/// How many times as long a round takes in the guest's kernel mode as here.
Result<double> slowness() {
  YADO_ASSIGN(const CountingGuest guest, CountingGuest::make(), "probe");
  for (std::uint64_t rounds = 64;; rounds *= 4) {
    nanoseconds inside = nanoseconds::max(), entry = nanoseconds::max(), here = nanoseconds::max();
    for (int i = 0; i < tries; ++i) {
      YADO_ASSIGN(const nanoseconds one, guest.count(1), "probe");
      YADO_ASSIGN(const nanoseconds many, guest.count(rounds), "probe");
      entry = std::min(entry, one);
      inside = std::min(inside, many);
      here = std::min(here, count_here(rounds));
    }
    if (rounds < most_rounds && inside < long_enough) continue;
    const double rounds_alone = static_cast<double>(std::max(inside - entry, nanoseconds(1)).count());
    return rounds_alone / static_cast<double>(std::max(here, nanoseconds(1)).count());
  }
}

}  // namespace

std::string_view name_of(Accelerator kind) { return kind == Accelerator::kvm ? "kvm" : "tcg"; }

AcceleratorChoice choose_accelerator() {
  const auto times = slowness();
  if (!times) return {Accelerator::tcg, "KVM does not work here: " + times.error().message};
  if (*times > interpreted_from)
    return {Accelerator::tcg, fmt::format("KVM is here, but runs guest kernels {:.0f} times as slow as this machine runs programs: it interprets them", *times)};
  return {Accelerator::kvm, fmt::format("KVM runs guest kernels at {:.1f} times the time of this machine's programs", *times)};
}

}  // namespace yado::vm
