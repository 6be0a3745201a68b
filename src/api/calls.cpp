#include "api/calls.hpp"

#include <nlohmann/json.hpp>

#include "api/fields.hpp"

namespace yado {

using api::Fields;
using nlohmann::json;

// Every call: how it is written, and right below how it is read.

void to_json(json& j, const RaiseCall& v) {
  j = json{{"workload", v.workload.str()}, {"instance", v.instance.str()}, {"epoch", v.epoch.value()}};
  if (v.spec) j["spec"] = *v.spec;
  if (v.image) j["image"] = v.image->str();
  if (v.only_image) j["only_image"] = true;
}

void read_json(const json& j, const std::string& path, Status& status, RaiseCall& v) {
  Fields(j, path, status)
      .optional("spec", v.spec)
      .required("workload", v.workload)
      .required("instance", v.instance)
      .required("epoch", v.epoch)
      .optional("image", v.image)
      .optional("only_image", v.only_image);
}

void to_json(json& j, const PrepareCall& v) {
  j = json{{"spec", v.spec}, {"instance", v.instance.str()}, {"epoch", v.epoch.value()}};
  if (v.image) j["image"] = v.image->str();
}

void read_json(const json& j, const std::string& path, Status& status, PrepareCall& v) {
  Fields(j, path, status)
      .required("spec", v.spec)
      .required("instance", v.instance)
      .required("epoch", v.epoch)
      .optional("image", v.image);
}

void to_json(json& j, const BuildCall& v) {
  j = json{{"spec", v.spec}, {"instance", v.instance.str()}, {"epoch", v.epoch.value()}, {"image", v.image.str()}};
  if (v.base) j["base"] = v.base->str();
  if (!v.peers.empty()) j["peers"] = v.peers;
  if (v.bytes_per_second != 0) j["bytes_per_second"] = v.bytes_per_second;
}

void read_json(const json& j, const std::string& path, Status& status, BuildCall& v) {
  Fields(j, path, status)
      .required("spec", v.spec)
      .required("instance", v.instance)
      .required("epoch", v.epoch)
      .required("image", v.image)
      .optional("base", v.base)
      .optional("peers", v.peers)
      .optional("bytes_per_second", v.bytes_per_second);
}

void to_json(json& j, const PullCall::Member& v) { j = json{{"image", v.image.str()}, {"from", v.from}}; }

void read_json(const json& j, const std::string& path, Status& status, PullCall::Member& v) {
  Fields(j, path, status).required("image", v.image).required("from", v.from);
}

void to_json(json& j, const PullCall& v) {
  j = json{{"spec", v.spec}, {"epoch", v.epoch.value()}, {"image", v.image.str()}, {"from", v.from}};
  if (!v.members.empty()) j["members"] = v.members;
  if (v.in_background) j["in_background"] = true;
  if (v.shares_only) j["shares_only"] = true;
}

void read_json(const json& j, const std::string& path, Status& status, PullCall& v) {
  Fields(j, path, status)
      .required("spec", v.spec)
      .required("epoch", v.epoch)
      .required("image", v.image)
      .required("from", v.from)
      .optional("members", v.members)
      .optional("in_background", v.in_background)
      .optional("shares_only", v.shares_only);
}

void to_json(json& j, const MergeCall& v) {
  j = json{{"workload", v.workload.str()}, {"epoch", v.epoch.value()}, {"image", v.image.str()}, {"others", v.others}};
}

void read_json(const json& j, const std::string& path, Status& status, MergeCall& v) {
  Fields(j, path, status)
      .required("workload", v.workload)
      .required("epoch", v.epoch)
      .required("image", v.image)
      .optional("others", v.others);
}

void to_json(json& j, const HandoverCall& v) {
  j = json{{"spec", v.spec}, {"instance", v.instance.str()}, {"epoch", v.epoch.value()}, {"image", v.image.str()}, {"to", v.to.str()}};
  if (v.disks_only) j["disks_only"] = true;
  for (const ImageId& image : v.ahead) j["ahead"].push_back(image.str());
  if (v.most_disk_bytes != 0) j["most_disk_bytes"] = v.most_disk_bytes;
}

void read_json(const json& j, const std::string& path, Status& status, HandoverCall& v) {
  Fields(j, path, status)
      .required("spec", v.spec)
      .required("instance", v.instance)
      .required("epoch", v.epoch)
      .required("image", v.image)
      .required("to", v.to)
      .optional("disks_only", v.disks_only)
      .optional("ahead", v.ahead)
      .optional("most_disk_bytes", v.most_disk_bytes);
}

namespace {

// Stop, sleep and inspect say the same three things.
template <class Call>
json three(const Call& v) {
  return {{"workload", v.workload.str()}, {"instance", v.instance.str()}, {"epoch", v.epoch.value()}};
}

template <class Call>
void read_three(const json& j, const std::string& path, Status& status, Call& v) {
  Fields(j, path, status).required("workload", v.workload).required("instance", v.instance).required("epoch", v.epoch);
}

}  // namespace

void to_json(json& j, const StopCall& v) { j = three(v); }
void to_json(json& j, const SleepCall& v) { j = three(v); }
void to_json(json& j, const InspectCall& v) { j = three(v); }
void read_json(const json& j, const std::string& path, Status& status, StopCall& v) { read_three(j, path, status, v); }
void read_json(const json& j, const std::string& path, Status& status, SleepCall& v) { read_three(j, path, status, v); }
void read_json(const json& j, const std::string& path, Status& status, InspectCall& v) {
  read_three(j, path, status, v);
}

void to_json(json& j, const ResplitCall& v) {
  j = json{{"spec", v.spec}, {"instance", v.instance.str()}, {"epoch", v.epoch.value()}};
}

void read_json(const json& j, const std::string& path, Status& status, ResplitCall& v) {
  Fields(j, path, status).required("spec", v.spec).required("instance", v.instance).required("epoch", v.epoch);
}

void to_json(json& j, const ExpectCall& v) {
  j = json{{"spec", v.spec}, {"instance", v.instance.str()}, {"epoch", v.epoch.value()}};
  for (const ImageId& image : v.ahead) j["ahead"].push_back(image.str());
}

void read_json(const json& j, const std::string& path, Status& status, ExpectCall& v) {
  Fields(j, path, status).required("spec", v.spec).required("instance", v.instance).required("epoch", v.epoch).optional("ahead", v.ahead);
}

void to_json(json& j, const DropImageCall& v) {
  j = json{{"workload", v.workload.str()}, {"epoch", v.epoch.value()}, {"image", v.image.str()}};
}

void read_json(const json& j, const std::string& path, Status& status, DropImageCall& v) {
  Fields(j, path, status).required("workload", v.workload).required("epoch", v.epoch).required("image", v.image);
}

void to_json(json& j, const AgentCall& value) {
  std::visit([&j](const auto& call) { to_json(j, call); }, value);
}

void to_json(json& j, const CallReply& v) {
  j = json{{"instance", v.instance.str()}, {"endpoint", v.endpoint}, {"way", name_of(v.way)}, {"times", v.times},
           {"state", name_of(v.state)},    {"sequence", v.sequence}, {"detail", v.detail}};
  if (v.image) j["image"] = *v.image;
}

void read_json(const json& j, const std::string& path, Status& status, CallReply& v) {
  Fields(j, path, status)
      .optional("instance", v.instance)
      .optional("endpoint", v.endpoint)
      .optional("way", v.way)
      .optional("times", v.times)
      .optional("image", v.image)
      .optional("state", v.state)
      .optional("sequence", v.sequence)
      .optional("detail", v.detail);
}

void to_json(json& j, const Event& v) {
  j = json{{"kind", v.kind},           {"workload", v.workload.str()},
           {"host", v.host.str()},     {"instance", v.instance.str()},
           {"epoch", v.epoch.value()}, {"fields", v.fields}};
}

void read_json(const json& j, const std::string& path, Status& status, Event& v) {
  Fields(j, path, status)
      .required("kind", v.kind)
      .optional("workload", v.workload)
      .optional("host", v.host)
      .optional("instance", v.instance)
      .optional("epoch", v.epoch)
      .optional("fields", v.fields);
}

namespace api {
namespace {

template <std::size_t kind = 0>
Result<AgentCall> parse_kind(std::string_view name, std::string_view body) {
  if constexpr (kind == std::variant_size_v<AgentCall>) {
    return fail(Errc::not_found, "there is no call \"{}\"", name);
  } else {
    using Call = std::variant_alternative_t<kind, AgentCall>;
    if (name_of(AgentCall(Call{})) != name) return parse_kind<kind + 1>(name, body);
    auto call = parse<Call>(body);
    if (!call) return std::unexpected(std::move(call.error()));
    return AgentCall(std::move(*call));
  }
}

}  // namespace

Result<AgentCall> parse_call(std::string_view kind, std::string_view body) { return parse_kind(kind, body); }

#define YADO_READABLE(T)                              \
  template Result<T> from_json_value<T>(const json&); \
  template Result<T> parse<T>(std::string_view);

YADO_READABLE(CallReply)
YADO_READABLE(Event)
YADO_READABLE(StopCall)
YADO_READABLE(DropImageCall)

}  // namespace api
}  // namespace yado
