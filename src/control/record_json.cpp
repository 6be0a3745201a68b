#include "control/record_json.hpp"

#include <array>

#include <nlohmann/json.hpp>

#include "api/fields.hpp"

namespace yado::control {

using api::Fields;
using nlohmann::json;

namespace {

constexpr std::array<std::pair<OwnerPhase, std::string_view>, 3> phases{
    {{OwnerPhase::absent, "absent"}, {OwnerPhase::raising, "raising"}, {OwnerPhase::up, "up"}}};

std::string_view word(OwnerPhase phase) {
  for (const auto& [value, name] : phases)
    if (value == phase) return name;
  return "absent";
}

}  // namespace

static void read_json(const json& tree, const std::string& path, Status& status, ReadyImage& v) {
  Fields(tree, path, status).required("id", v.id).required("revision", v.revision).required("bases", v.bases).required("of", v.of).optional("origin", v.origin);
}

static json to_tree(const ReadyImage& v) {
  json j{{"id", v.id.str()}, {"revision", v.revision}, {"bases", json::array()}, {"of", v.of.str()}};
  for (const ImageId& base : v.bases) j["bases"].push_back(base.str());
  if (v.origin) j["origin"] = v.origin->str();
  return j;
}

std::string dump_record(const Record& v) {
  json j{{"spec", v.spec},
         {"revision", v.revision},
         {"removed", v.removed},
         {"stopped", v.stopped},
         {"epoch", v.epoch.value()},
         {"serial", v.serial},
         {"phase", word(v.phase)},
         {"host", v.host.str()},
         {"instance", v.instance.str()},
         {"endpoint", v.endpoint},
         {"standby_host", v.standby_host.str()},
         {"standby_revision", v.standby_revision}};
  if (v.image) j["image"] = to_tree(*v.image);
  if (v.acknowledged) j["acknowledged"] = to_tree(*v.acknowledged);
  if (v.raised_from) j["raised_from"] = v.raised_from->str();
  if (v.standby) j["standby"] = v.standby->str();
  if (v.memory_hosts) j["memory_hosts"] = *v.memory_hosts;
  return api::dump(j);
}

Result<Record> parse_record(std::string_view text) {
  auto tree = api::parse_json(text);
  if (!tree) return fail(Errc::corrupt, "record: {}", tree.error().message);
  Record v;
  Status status;
  std::string phase;
  Fields(*tree, "", status)
      .required("spec", v.spec)
      .required("revision", v.revision)
      .optional("removed", v.removed)
      .optional("stopped", v.stopped)
      .required("epoch", v.epoch)
      .required("serial", v.serial)
      .required("phase", phase)
      .optional("host", v.host)
      .optional("instance", v.instance)
      .optional("endpoint", v.endpoint)
      .optional("image", v.image)
      .optional("acknowledged", v.acknowledged)
      .optional("raised_from", v.raised_from)
      .optional("standby", v.standby)
      .optional("standby_host", v.standby_host)
      .optional("standby_revision", v.standby_revision)
      .optional("memory_hosts", v.memory_hosts);
  if (!status) return fail(Errc::corrupt, "record: {}", status.error().message);
  for (const auto& [value, name] : phases)
    if (name == phase) {
      v.phase = value;
      return v;
    }
  return fail(Errc::corrupt, "record: phase \"{}\" is not known", phase);
}

}  // namespace yado::control
