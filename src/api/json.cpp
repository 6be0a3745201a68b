#include "api/json.hpp"

#include <nlohmann/json.hpp>

#include "api/fields.hpp"

namespace yado {

using api::Fields;
using nlohmann::json;

namespace {

std::int64_t us(nanoseconds duration) {
  return std::chrono::duration_cast<std::chrono::microseconds>(duration).count();
}

// JSON has no NaN; nlohmann would write null, which no reader of a number takes.
double finite(double value) { return std::isfinite(value) ? value : 0; }

template <class Tag>
std::vector<std::string> texts(const std::vector<Name<Tag>>& names) {
  std::vector<std::string> result;
  for (const auto& name : names) result.push_back(name.str());
  return result;
}

}  // namespace

// Every type: how it is written, and right below how it is read, so that a new field is added in one place.

void to_json(json& j, const Error& v) { j = json{{"code", name_of(v.code)}, {"message", v.message}}; }

void read_json(const json& j, const std::string& path, Status& status, Error& v) {
  std::string code;
  Fields(j, path, status).required("code", code).optional("message", v.message);
  v.code = errc_from_name(code);
}

void to_json(json& j, const Mount& v) {
  j = json{{"source", v.source}, {"target", v.target}, {"read_only", v.read_only}};
}

void read_json(const json& j, const std::string& path, Status& status, Mount& v) {
  Fields(j, path, status).required("source", v.source).required("target", v.target).optional("read_only", v.read_only);
}

void to_json(json& j, const ContainerSpec& v) {
  j = json{{"root", v.root},
           {"command", v.command},
           {"environment", v.environment},
           {"working_directory", v.working_directory},
           {"uid", v.uid},
           {"gid", v.gid},
           {"mounts", v.mounts},
           {"memory_bytes", v.memory_bytes},
           {"cpus", finite(v.cpus)},
           {"pids", v.pids}};
}

void read_json(const json& j, const std::string& path, Status& status, ContainerSpec& v) {
  Fields(j, path, status)
      .required("root", v.root)
      .required("command", v.command)
      .optional("environment", v.environment)
      .optional("working_directory", v.working_directory)
      .optional("uid", v.uid)
      .optional("gid", v.gid)
      .optional("mounts", v.mounts)
      .optional("memory_bytes", v.memory_bytes)
      .optional("cpus", v.cpus)
      .optional("pids", v.pids);
}

void to_json(json& j, const MemoryHost& v) {
  j = json{{"host", v.host.str()}};
  if (v.bytes != 0) j["bytes"] = v.bytes;
  if (v.port != 0) j["address"] = v.address, j["port"] = v.port;
  if (v.leaving) j["leaving"] = true;
}

void read_json(const json& j, const std::string& path, Status& status, MemoryHost& v) {
  Fields(j, path, status).required("host", v.host).optional("address", v.address).optional("port", v.port).optional("bytes", v.bytes).optional("leaving", v.leaving);
}

void to_json(json& j, const Split& v) {
  j = json{{"local_bytes", v.local_bytes}, {"over", v.over}, {"redundancy", name_of(v.redundancy)}, {"prefetch_pages", v.prefetch_pages}};
  if (v.checkpoint_bytes_per_second != 0) j["checkpoint_bytes_per_second"] = v.checkpoint_bytes_per_second;
}

void read_json(const json& j, const std::string& path, Status& status, Split& v) {
  Fields(j, path, status)
      .required("local_bytes", v.local_bytes)
      .required("over", v.over)
      .optional("redundancy", v.redundancy)
      .optional("prefetch_pages", v.prefetch_pages)
      .optional("checkpoint_bytes_per_second", v.checkpoint_bytes_per_second);
}

void to_json(json& j, const VmSpec& v) {
  j = json{{"kernel", v.kernel},   {"initramfs", v.initramfs},       {"command_line", v.command_line},
           {"disks", v.disks},     {"memory_bytes", v.memory_bytes}, {"vcpus", v.vcpus},
           {"cpus", v.cpus}};
  if (v.split) j["split"] = *v.split;
}

void read_json(const json& j, const std::string& path, Status& status, VmSpec& v) {
  Fields(j, path, status)
      .optional("kernel", v.kernel)
      .optional("initramfs", v.initramfs)
      .optional("command_line", v.command_line)
      .optional("disks", v.disks)
      .required("memory_bytes", v.memory_bytes)
      .optional("vcpus", v.vcpus)
      .optional("cpus", v.cpus)
      .optional("split", v.split);
}

void to_json(json& j, const Readiness& v) {
  j = json{{"path", v.path}, {"status", v.status}, {"contains", v.contains}, {"start_limit_ms", v.start_limit.count()}};
}

void read_json(const json& j, const std::string& path, Status& status, Readiness& v) {
  Fields(j, path, status)
      .optional("path", v.path)
      .optional("status", v.status)
      .optional("contains", v.contains)
      .optional("start_limit_ms", v.start_limit);
}

void to_json(json& j, const Service& v) {
  j = json{{"hosts", v.hosts}, {"port", v.port}, {"ready", v.ready}, {"idempotency_header", v.idempotency_header}};
}

void read_json(const json& j, const std::string& path, Status& status, Service& v) {
  Fields(j, path, status)
      .optional("hosts", v.hosts)
      .required("port", v.port)
      .optional("ready", v.ready)
      .optional("idempotency_header", v.idempotency_header);
}

void to_json(json& j, const Policy& v) {
  j = json{{"standby", name_of(v.standby)},
           {"consistency", name_of(v.consistency)},
           {"lease_ms", v.lease.count()},
           {"relocations", v.relocations},
           {"relocations_per_ms", v.relocations_per.count()},
           {"image_age_ms", v.image_age.count()},
           {"frozen_age_ms", v.frozen_age.count()},
           {"warm_up", v.warm_up},
           {"placement", texts(v.placement)}};
  if (v.lifetime) j["lifetime_ms"] = v.lifetime->count();
}

void read_json(const json& j, const std::string& path, Status& status, Policy& v) {
  Fields(j, path, status)
      .optional("standby", v.standby)
      .optional("consistency", v.consistency)
      .optional("lease_ms", v.lease)
      .optional("relocations", v.relocations)
      .optional("relocations_per_ms", v.relocations_per)
      .optional("lifetime_ms", v.lifetime)
      .optional("image_age_ms", v.image_age)
      .optional("frozen_age_ms", v.frozen_age)
      .optional("warm_up", v.warm_up)
      .optional("placement", v.placement);
}

void to_json(json& j, const WorkloadSpec& v) {
  j = json{{"name", v.name.str()},
           {"kind", name_of(v.kind)},
           {"service", v.service},
           {"policy", v.policy}};
  if (v.kind == Kind::vm) j["vm"] = v.vm;
  else j["container"] = v.container;
}

void read_json(const json& j, const std::string& path, Status& status, WorkloadSpec& v) {
  Fields fields(j, path, status);
  fields.required("name", v.name).optional("kind", v.kind).required("service", v.service).optional("policy", v.policy);
  if (v.kind == Kind::vm) fields.required("vm", v.vm);
  else fields.required("container", v.container);
}

void to_json(json& j, const Endpoint& v) { j = json{{"address", v.address}, {"port", v.port}}; }

void read_json(const json& j, const std::string& path, Status& status, Endpoint& v) {
  Fields(j, path, status).required("address", v.address).required("port", v.port);
}

void to_json(json& j, const InstanceReport& v) {
  j = json{{"id", v.id.str()},         {"workload", v.workload.str()}, {"purpose", name_of(v.purpose)},
           {"epoch", v.epoch.value()}, {"state", name_of(v.state)},    {"endpoint", v.endpoint},
           {"age_ms", v.age.count()}};
  if (v.image) j["image"] = v.image->str();
  if (!v.how.empty()) j["how"] = v.how;
}

void read_json(const json& j, const std::string& path, Status& status, InstanceReport& v) {
  Fields(j, path, status)
      .required("id", v.id)
      .required("workload", v.workload)
      .required("purpose", v.purpose)
      .required("epoch", v.epoch)
      .required("state", v.state)
      .optional("endpoint", v.endpoint)
      .optional("image", v.image)
      .optional("age_ms", v.age)
      .optional("how", v.how);
}

void to_json(json& j, const ImageReport& v) {
  j = json{{"id", v.id.str()},
           {"workload", v.workload.str()},
           {"spec_hash", v.spec_hash},
           {"bytes", v.bytes},
           {"age_ms", v.age.count()}};
  if (v.member_of) j["member_of"] = v.member_of->str();
  if (v.base) j["base"] = v.base->str();
  if (v.merged) j["merged"] = true;
  if (!v.members.empty()) j["members"] = texts(v.members);
}

void read_json(const json& j, const std::string& path, Status& status, ImageReport& v) {
  Fields(j, path, status)
      .required("id", v.id)
      .required("workload", v.workload)
      .required("spec_hash", v.spec_hash)
      .optional("bytes", v.bytes)
      .optional("age_ms", v.age)
      .optional("member_of", v.member_of)
      .optional("base", v.base)
      .optional("merged", v.merged)
      .optional("members", v.members);
}

void to_json(json& j, const FenceReport& v) { j = json{{"workload", v.workload.str()}, {"epoch", v.epoch.value()}}; }

void read_json(const json& j, const std::string& path, Status& status, FenceReport& v) {
  Fields(j, path, status).required("workload", v.workload).required("epoch", v.epoch);
}

void to_json(json& j, const HostReport& v) {
  j = json{{"host", v.host.str()},
           {"boot", v.boot},
           {"agent", v.agent},
           {"sequence", v.sequence},
           {"instances", v.instances},
           {"images", v.images},
           {"fences", v.fences},
           {"memory_free_bytes", v.memory_free_bytes},
           {"load", finite(v.load)},
           {"checkpoint_works", v.checkpoint_works}};
  if (v.memory.port != 0) j["memory"] = v.memory;
}

void read_json(const json& j, const std::string& path, Status& status, HostReport& v) {
  Fields(j, path, status)
      .required("host", v.host)
      .required("boot", v.boot)
      .required("agent", v.agent)
      .required("sequence", v.sequence)
      .required("instances", v.instances)
      .required("images", v.images)
      .optional("fences", v.fences)
      .optional("memory_free_bytes", v.memory_free_bytes)
      .optional("load", v.load)
      .optional("checkpoint_works", v.checkpoint_works)
      .optional("memory", v.memory);
}

void to_json(json& j, const RaiseTimes& v) { j = json{{"raise_us", us(v.raise)}, {"ready_us", us(v.ready)}}; }

void read_json(const json& j, const std::string& path, Status& status, RaiseTimes& v) {
  Fields(j, path, status).required("raise_us", v.raise).required("ready_us", v.ready);
}

void to_json(json& j, const Route& v) {
  j = json{{"workload", v.workload.str()},
           {"service", v.service},
           {"consistency", name_of(v.consistency)},
           {"relocations", v.relocations},
           {"relocations_per_ms", v.relocations_per.count()},
           {"state", name_of(v.state)},
           {"epoch", v.epoch.value()},
           {"host", v.host.str()},
           {"endpoint", v.endpoint},
           {"fallback", texts(v.fallback)}};
  if (v.lifetime) j["lifetime_ms"] = v.lifetime->count();
}

void read_json(const json& j, const std::string& path, Status& status, Route& v) {
  Fields(j, path, status)
      .required("workload", v.workload)
      .required("service", v.service)
      .required("consistency", v.consistency)
      .optional("relocations", v.relocations)
      .optional("relocations_per_ms", v.relocations_per)
      .optional("lifetime_ms", v.lifetime)
      .required("state", v.state)
      .required("epoch", v.epoch)
      .optional("host", v.host)
      .optional("endpoint", v.endpoint)
      .optional("fallback", v.fallback);
}

void to_json(json& j, const HostAddress& v) { j = json{{"host", v.host.str()}, {"agent", v.agent}}; }

void read_json(const json& j, const std::string& path, Status& status, HostAddress& v) {
  Fields(j, path, status).required("host", v.host).required("agent", v.agent);
}

void to_json(json& j, const RouteTable& v) {
  j = json{{"version", v.version}, {"routes", v.routes}, {"hosts", v.hosts}};
}

void read_json(const json& j, const std::string& path, Status& status, RouteTable& v) {
  Fields(j, path, status).required("version", v.version).required("routes", v.routes).optional("hosts", v.hosts);
}

namespace api {
namespace {

// nlohmann parses any depth without recursion but copies and prints recursively: a peer must not be able to choose how
// much stack that takes. Counts brackets outside strings; whether they match is the parser's business.
constexpr std::size_t deepest = 64;

bool too_deep(std::string_view text) {
  std::size_t depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > deepest) return true;
    } else if ((c == ']' || c == '}') && depth > 0) {
      --depth;
    }
  }
  return false;
}

}  // namespace

Result<json> parse_json(std::string_view text) {
  if (too_deep(text)) return fail(Errc::invalid_argument, "JSON nested deeper than {} levels", deepest);
  try {
    return json::parse(text);
  } catch (const json::parse_error& error) {
    return fail(Errc::invalid_argument, "not JSON at byte {} of {}", error.byte, text.size());
  } catch (const std::exception& error) {  // out_of_range: 1e999; bad_alloc: more than fits
    return fail(Errc::invalid_argument, "not JSON: {}", error.what());
  }
}

std::string dump(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

std::string dump_pretty(const json& value) { return value.dump(2, ' ', false, json::error_handler_t::replace); }

#define YADO_READABLE(T)                              \
  template Result<T> from_json_value<T>(const json&); \
  template Result<T> parse<T>(std::string_view);

YADO_READABLE(WorkloadSpec)
YADO_READABLE(Service)
YADO_READABLE(Endpoint)
YADO_READABLE(InstanceReport)
YADO_READABLE(ImageReport)
YADO_READABLE(HostReport)
YADO_READABLE(RaiseTimes)
YADO_READABLE(Route)
YADO_READABLE(HostAddress)
YADO_READABLE(RouteTable)
YADO_READABLE(Error)

}  // namespace api
}  // namespace yado
