#include "agent/state_directory.hpp"

#include <fcntl.h>
#include <sys/file.h>

#include <cerrno>
#include <charconv>
#include <nlohmann/json.hpp>

#include "api/fields.hpp"
#include "base/log.hpp"
#include "os/file.hpp"
#include "wire/files.hpp"

namespace yado::agent {

namespace fs = std::filesystem;

static void read_json(const nlohmann::json& json, const std::string& path, Status& status, InstanceRecord& value) {
  std::string address;
  api::Fields(json, path, status)
      .required("id", value.id)
      .required("workload", value.workload)
      .required("purpose", value.purpose)
      .required("epoch", value.epoch)
      .optional("image", value.image)
      .required("address", address)
      .required("published", value.published)
      .required("service", value.service)
      .required("since_ns", value.since_ns)
      .required("ready", value.ready);
  if (!status) return;
  auto parsed = net::Ipv4::parse(address);
  if (!parsed) {
    status = context(parsed.error(), "address");
    return;
  }
  value.address = *parsed;
}

namespace {

std::string text_of(const InstanceRecord& record) {
  nlohmann::json json{{"version", 1},
                      {"id", record.id.str()},
                      {"workload", record.workload.str()},
                      {"purpose", name_of(record.purpose)},
                      {"epoch", record.epoch.value()},
                      {"address", record.address.str()},
                      {"published", record.published},
                      {"service", record.service},
                      {"since_ns", record.since_ns},
                      {"ready", record.ready}};
  if (record.image) json["image"] = record.image->str();
  return api::dump_pretty(json) + "\n";
}

template <class Integer>
Result<Integer> number_in(const fs::path& file) {
  YADO_ASSIGN(std::string text, os::read_text(file), "state directory");
  while (!text.empty() && text.back() == '\n') text.pop_back();
  Integer value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size())
    return fail(Errc::corrupt, "{} holds \"{}\" where a number should stand", file.native(), text.substr(0, 40));
  return value;
}

/// Names of the entries that are names; what a crash left of an atomic write is skipped.
Result<std::vector<std::string>> entries(const fs::path& directory, std::string_view ending) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    std::string name = it->path().filename().native();
    if (!name.ends_with(ending)) continue;
    name.resize(name.size() - ending.size());
    if (valid_name(name) && !name.ends_with(".new")) names.push_back(std::move(name));
  }
  if (error) return fail(Errc::io, "read {}: {}", directory.native(), error.message());
  return names;
}

}  // namespace

Result<StateDirectory> StateDirectory::open(const fs::path& root) {
  std::error_code error;
  fs::create_directories(root.parent_path(), error);
  YADO_TRY(wire::make_private_directory(root), "state directory");
  YADO_ASSIGN(os::Fd lock, os::open_path(root / "agent.lock", O_RDWR | O_CREAT, 0600), "state directory");
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK)
      return fail(Errc::conflict, "another agent uses the state directory {}: give this one a directory of its own",
                  root.native());
    return fail_errno(fmt::format("lock {}", (root / "agent.lock").native()));
  }
  for (const char* name : {"fences", "specs", "instances", "images", "roots"})
    YADO_TRY(wire::make_private_directory(root / name), "state directory");
  return StateDirectory(root, std::move(lock));
}

Status StateDirectory::save_fence(const WorkloadId& workload, Epoch epoch) const {
  return wire::write_file(root_ / "fences" / workload.str(), fmt::format("{}\n", epoch.value()), 0600);
}

Result<std::map<WorkloadId, Epoch>> StateDirectory::fences() const {
  YADO_ASSIGN(const std::vector<std::string> names, entries(root_ / "fences", ""), "fences");
  std::map<WorkloadId, Epoch> all;
  for (const std::string& name : names) {
    auto value = number_in<std::uint64_t>(root_ / "fences" / name);
    if (!value)
      return fail(value.error().code,
                  "the fence of {} cannot be read ({}); without it an old owner could act again. "
                  "Write the newest epoch that `yado ps --json` shows for it into the file, or remove it when the "
                  "workload is gone",
                  name, value.error().message);
    all.emplace(WorkloadId(name), Epoch(*value));
  }
  return all;
}

Status StateDirectory::save_spec(const WorkloadSpec& spec) const {
  return wire::write_file(root_ / "specs" / (spec.name.str() + ".json"), api::dump_pretty(nlohmann::json(spec)) + "\n",
                          0600);
}

Result<std::vector<WorkloadSpec>> StateDirectory::specs() const {
  YADO_ASSIGN(const std::vector<std::string> names, entries(root_ / "specs", ".json"), "specs");
  std::vector<WorkloadSpec> all;
  for (const std::string& name : names) {
    const auto read = [&]() -> Result<WorkloadSpec> {
      YADO_ASSIGN(const std::string text, os::read_text(root_ / "specs" / (name + ".json")), "spec");
      return api::parse<WorkloadSpec>(text);
    };
    auto spec = read();
    if (spec && spec->name.str() == name)
      all.push_back(std::move(*spec));
    else
      log::warn("spec of {} left out: {}", name, spec ? "it names another workload" : spec.error().text());
  }
  return all;
}

Status StateDirectory::save_instance(const InstanceRecord& record) const {
  YADO_TRY(wire::make_private_directory(instance(record.id)), "instance");
  return wire::write_file(instance(record.id) / "record.json", text_of(record), 0600);
}

Result<std::vector<InstanceRecord>> StateDirectory::instances() const {
  YADO_ASSIGN(const std::vector<std::string> names, entries(root_ / "instances", ""), "instances");
  std::vector<InstanceRecord> all;
  for (const std::string& name : names) {
    const auto read = [&]() -> Result<InstanceRecord> {
      YADO_ASSIGN(const std::string text, os::read_text(root_ / "instances" / name / "record.json"), "instance");
      return api::parse<InstanceRecord>(text);
    };
    auto record = read();
    if (record && record->id.str() == name) {
      all.push_back(std::move(*record));
      continue;
    }
    log::warn("instance {}: {}", name, record ? "its record names another one" : record.error().text());
    all.push_back(InstanceRecord{.id = InstanceId(name)});
  }
  return all;
}

Status StateDirectory::remove_instance(const InstanceId& id) const {
  std::error_code error;
  fs::remove_all(instance(id), error);
  if (error) return fail(Errc::io, "remove {}: {}", instance(id).native(), error.message());
  return {};
}

std::uint16_t StateDirectory::last_port() const { return number_in<std::uint16_t>(root_ / "port").value_or(0); }

Status StateDirectory::save_port(std::uint16_t port) const {
  return wire::write_file(root_ / "port", fmt::format("{}\n", port), 0600);
}

}  // namespace yado::agent
