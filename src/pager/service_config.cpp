#include <nlohmann/json.hpp>

#include "pager/service.hpp"

namespace yado::pager {
namespace fs = std::filesystem;
using nlohmann::json;
namespace {

json texts(const std::vector<fs::path>& paths) {
  json all = json::array();
  for (const fs::path& path : paths) all.push_back(path.native());
  return all;
}

json to_json(const ServiceConfig::Server& server) {
  return {{"host", server.host}, {"unix_path", server.unix_path}, {"address", server.address}, {"port", server.port},
          {"expected_peer", server.expected_peer}, {"quota_bytes", server.quota_bytes}, {"leaving", server.leaving}, {"load", server.load},
          {"parts", texts(server.parts)}, {"instance", server.instance}, {"epoch", server.epoch}, {"held_pages", server.held_pages}, {"puts", server.puts},
          {"parity_instance", server.parity_instance}, {"parity_columns", server.parity_columns}};
}

/// Throws json::exception.
ServiceConfig::Server server_from_json(const json& one) {
  ServiceConfig::Server server;
  one.at("host").get_to(server.host);
  one.at("unix_path").get_to(server.unix_path);
  one.at("address").get_to(server.address);
  one.at("port").get_to(server.port);
  one.at("expected_peer").get_to(server.expected_peer);
  one.at("quota_bytes").get_to(server.quota_bytes);
  server.leaving = one.value("leaving", false);
  server.load = one.value("load", std::vector<std::string>());
  for (const std::string& part : one.value("parts", std::vector<std::string>())) server.parts.emplace_back(part);
  server.instance = one.value("instance", std::uint64_t{0});
  server.epoch = one.value("epoch", std::uint64_t{0});
  server.held_pages = one.value("held_pages", std::uint64_t{0});
  server.puts = one.value("puts", std::uint64_t{0});
  server.parity_instance = one.value("parity_instance", std::uint64_t{0});
  server.parity_columns = one.value("parity_columns", 0U);
  return server;
}

}  // namespace

bool ServiceConfig::operator==(const ServiceConfig& other) const { return to_text(*this) == to_text(other); }

std::string to_text(const ServiceConfig& config) {
  json servers = json::array();
  for (const auto& server : config.servers) servers.push_back(to_json(server));
  json images = json::array();
  for (const auto& parts : config.image) images.push_back(texts(parts));
  return json{{"control", config.control.native()}, {"memory_bytes", config.memory_bytes}, {"local_bytes", config.local_bytes},
              {"prefetch_pages", config.prefetch_pages}, {"copies", config.copies}, {"parity", config.parity}, {"save_bytes_per_second", config.save_bytes_per_second}, {"session", config.session}, {"epoch", config.epoch},
              {"identity", config.identity.native()}, {"servers", std::move(servers)}, {"image", std::move(images)},
              {"use", config.use.native()}, {"left_in", config.left_in.native()}, {"waits", config.waits}}
      .dump(2);
}

Result<ServiceConfig> config_from_text(std::string_view text) {
  try {
    const json all = json::parse(text);
    ServiceConfig config;
    config.control = all.at("control").get<std::string>();
    config.identity = all.at("identity").get<std::string>();
    all.at("memory_bytes").get_to(config.memory_bytes);
    all.at("local_bytes").get_to(config.local_bytes);
    all.at("prefetch_pages").get_to(config.prefetch_pages);
    all.at("copies").get_to(config.copies);
    config.parity = all.value("parity", false);
    config.save_bytes_per_second = all.value("save_bytes_per_second", std::uint64_t{0});
    all.at("session").get_to(config.session);
    all.at("epoch").get_to(config.epoch);
    for (const json& one : all.at("servers")) config.servers.push_back(server_from_json(one));
    config.use = all.value("use", "");
    config.left_in = all.at("left_in").get<std::string>();
    config.waits = all.value("waits", false);
    for (const json& one : all.at("image")) {
      auto& parts = config.image.emplace_back();
      for (const json& part : one) parts.emplace_back(part.get<std::string>());
    }
    return config;
  } catch (const json::exception& error) {
    return fail(Errc::corrupt, "a pager's configuration: {}", error.what());
  }
}

std::string to_text(const std::vector<ServiceConfig::Server>& servers) {
  json all = json::array();
  for (const auto& server : servers) all.push_back(to_json(server));
  return all.dump();
}

Result<std::vector<ServiceConfig::Server>> servers_from_text(std::string_view text) {
  try {
    std::vector<ServiceConfig::Server> servers;
    for (const json& one : json::parse(text)) servers.push_back(server_from_json(one));
    return servers;
  } catch (const json::exception& error) {
    return fail(Errc::invalid_argument, "memory servers: {}", error.what());
  }
}

}  // namespace yado::pager
