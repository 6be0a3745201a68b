#include "agent/supervisor/protocol.hpp"

#include <nlohmann/json.hpp>

#include "api/fields.hpp"
#include "model/names.hpp"

namespace yado {
namespace supervisor {
namespace {

constexpr std::string_view how_words[] = {"none", "started", "restored"};

struct Document {
  Config config;
};

void read_json(const nlohmann::json& json, const std::string& path, Status& status, Document& value) {
  Config& c = value.config;
  std::string directory, root, criu, criu_cache, identity;
  api::Fields(json, path, status)
      .required("instance", c.instance)
      .required("spec", c.spec)
      .required("epoch", c.epoch)
      .required("purpose", c.purpose)
      .required("directory", directory)
      .required("root", root)
      .required("cgroup", c.cgroup)
      .required("id_base", c.id_base)
      .optional("criu", criu)
      .optional("criu_cache", criu_cache)
      .optional("criu_limit_ms", c.criu_limit)
      .optional("identity", identity)
      .optional("disks_ahead", c.disks_ahead)
      .optional("log_bytes", c.log_bytes);
  c.directory = directory;
  c.root = root;
  c.criu = criu;
  c.criu_cache = criu_cache;
  c.identity = identity;
}

}  // namespace

std::string to_text(const Config& c) {
  nlohmann::json json = {{"instance", c.instance.str()},
                         {"spec", c.spec},
                         {"epoch", c.epoch.value()},
                         {"purpose", name_of(c.purpose)},
                         {"directory", c.directory.native()},
                         {"root", c.root.native()},
                         {"cgroup", c.cgroup},
                         {"id_base", c.id_base},
                         {"criu", c.criu.native()},
                         {"criu_cache", c.criu_cache.native()},
                         {"criu_limit_ms", c.criu_limit.count()},
                         {"identity", c.identity.native()},
                         {"disks_ahead", c.disks_ahead},
                         {"log_bytes", c.log_bytes}};
  return api::dump(json);
}

Result<Config> config_from_text(std::string_view text) {
  auto document = api::parse<Document>(text);
  if (!document) return context(document.error(), "supervisor.json");
  return std::move(document->config);
}

void to_json(nlohmann::json& json, const Description& v) {
  json = {{"instance", v.instance.str()},
          {"workload", v.workload.str()},
          {"epoch", v.epoch.value()},
          {"purpose", name_of(v.purpose)},
          {"state", name_of(v.state)},
          {"supervisor_pid", v.supervisor_pid},
          {"pid", v.pid},
          {"how", how_words[static_cast<int>(v.how)]},
          {"age_ms", v.age.count()},
          {"state_age_ms", v.state_age.count()},
          {"log_path", v.log_path},
          {"lease_needed", v.lease_needed},
          {"lease_held", v.lease_held},
          {"stands", v.stands},
          {"exit_code", v.exit_code},
          {"exit_signal", v.exit_signal}};
}

void read_json(const nlohmann::json& json, const std::string& path, Status& status, Description& v) {
  std::string how;
  api::Fields(json, path, status)
      .required("instance", v.instance)
      .required("workload", v.workload)
      .required("epoch", v.epoch)
      .required("purpose", v.purpose)
      .required("state", v.state)
      .optional("supervisor_pid", v.supervisor_pid)
      .optional("pid", v.pid)
      .optional("how", how)
      .optional("age_ms", v.age)
      .optional("state_age_ms", v.state_age)
      .optional("log_path", v.log_path)
      .optional("lease_needed", v.lease_needed)
      .optional("lease_held", v.lease_held)
      .optional("stands", v.stands)
      .optional("exit_code", v.exit_code)
      .optional("exit_signal", v.exit_signal);
  for (std::size_t i = 0; i < std::size(how_words); ++i)
    if (how == how_words[i]) v.how = static_cast<How>(i);
}

}  // namespace supervisor
}  // namespace yado
