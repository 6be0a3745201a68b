#pragma once
// Whether KVM runs guest kernels on this machine. That /dev/kvm opens proves little: nested and paravirtual KVMs exist
// that run user code natively and interpret kernel code, hundreds of times slower than QEMU's translator (TCG).

#include <string>
#include <string_view>

namespace yado::vm {

enum class Accelerator { tcg, kvm };

struct AcceleratorChoice {
  Accelerator kind = Accelerator::tcg;
  std::string why;  ///< a sentence for people
};

/// "kvm", "tcg": QEMU's names.
std::string_view name_of(Accelerator kind);

/// Runs a short loop in kernel mode (ring 0) of a guest made for it and compares its time with the same loop here.
/// Takes some ten milliseconds; the result holds for as long as the machine runs.
AcceleratorChoice choose_accelerator();

}  // namespace yado::vm
