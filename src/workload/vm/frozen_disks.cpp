#include "workload/vm/frozen_disks.hpp"

#include <nlohmann/json.hpp>

#include "base/log.hpp"
#include "workload/vm/command_line.hpp"

namespace yado::vm {
namespace {

constexpr nanoseconds greeting_limit = 1s;
constexpr nanoseconds freeze_limit = 2s;  // what the guest has not written out by then keeps nobody waiting
constexpr nanoseconds thaw_limit = 30s;   // it may still be writing out

}  // namespace

Result<bool> agent_port_is_open(Qmp& qmp, nanoseconds limit) {
  YADO_ASSIGN(const std::string answer, qmp.execute("query-chardev", "{}", limit), "guest agent");
  const auto devices = nlohmann::json::parse(answer, nullptr, false);
  if (devices.is_array())
    for (const auto& device : devices)
      if (device.is_object() && device.value("label", "") == agent_device) return device.value("frontend-open", false);
  return false;
}

FrozenDisks FrozenDisks::prepare(Qmp& qmp, const std::function<Result<os::Fd>()>& connect, nanoseconds limit) {
  FrozenDisks made;
  if (!agent_port_is_open(qmp, limit).value_or(false)) return made;
  auto socket = connect();
  if (!socket) return made;
  auto agent = GuestAgent::open(std::move(*socket), greeting_limit);
  if (agent) made.agent_.emplace(std::move(*agent));
  else log::warn("disks will not be frozen: {}", agent.error().text());
  return made;
}

bool FrozenDisks::freeze() {
  if (!agent_) return false;
  asked_ = true;
  const auto count = agent_->freeze_disks(freeze_limit);
  if (count && *count > 0) return true;
  log::warn("disks are not frozen: {}", count ? std::string("no file system can be") : count.error().text());
  thaw();
  return false;
}

void FrozenDisks::thaw() {
  if (!asked_) return;
  asked_ = false;
  auto thawed = agent_->thaw_disks(thaw_limit);
  if (!thawed) {
    // Late with another answer, perhaps.
    if (const Status in_step = agent_->synchronize(thaw_limit); in_step) thawed = agent_->thaw_disks(thaw_limit);
  }
  if (!thawed) log::error("the guest's file systems may be frozen still: {}", thawed.error().text());
}

}  // namespace yado::vm
