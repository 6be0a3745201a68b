// yado adopt: a domain of libvirt's becomes a workload.

#include <cerrno>

#include <fcntl.h>
#include <nlohmann/json.hpp>

#include "adopt/domain.hpp"
#include "api/json.hpp"
#include "base/id.hpp"
#include "cli/run.hpp"
#include "cli/virsh.hpp"
#include "os/file.hpp"
#include "spec/check.hpp"

namespace yado::cli {
namespace {

struct AdoptOptions {
  Common common;
  std::string domain, uri, name;
  std::vector<std::string> hosts;
  std::uint16_t port = 0;
  unsigned grace_s = 120;
  bool spec_only = false;
  bool destroy = false;
};

/// One that is there and says the same is as good; any other may be somebody's work.
Status write_spec(const std::string& file, const std::string& text) {
  auto made = os::open_path(file, O_WRONLY | O_CREAT | O_EXCL, 0644);
  if (made) return os::write_all(*made, text);
  if (made.error().code != Errc::already_exists) return std::unexpected(made.error());
  YADO_ASSIGN(const std::string old, os::read_text(file), "spec");
  if (old == text) return {};
  return fail(Errc::already_exists, "{} is there and says something else: remove it, or `yado run` it", file);
}

void tell(const adopt::Domain& domain) {
  for (const std::string& line : domain.obstacles) fmt::print(stderr, "missing: {}\n", line);
  for (const std::string& line : domain.changes) fmt::print(stderr, "changed: {}\n", line);
}

/// Libvirt's hands are off it when this returns without an error.
Status take_from(const Virsh& virsh, const AdoptOptions& options) {
  YADO_ASSIGN(const bool saved, virsh.has_saved_memory(), "adopt");
  if (saved)
    return fail(Errc::conflict, "libvirt keeps the memory of {} in a file, and its disks are as of that moment: start it and shut it down, or `virsh managedsave-remove` it, first", options.domain);
  YADO_ASSIGN(const bool active, virsh.active(), "adopt");
  if (active && options.destroy) {
    fmt::print(stderr, "{}: the plug is pulled\n", options.domain);
    YADO_TRY(virsh.destroy(), "adopt");
  } else if (active) {
    fmt::print(stderr, "{}: the power button is pressed, for up to {} s\n", options.domain, options.grace_s);
    YADO_TRY(virsh.shut_down(seconds(options.grace_s)), "adopt");
  }
  // Beside ours it must not start by itself.
  YADO_TRY(virsh.forget_autostart(), "adopt");
  fmt::print(stderr, "{}: shut off, and libvirt does not start it by itself any more\n", options.domain);
  return {};
}

int adopt_domain(const AdoptOptions& options) {
  if (!options.spec_only && (options.port == 0 || options.hosts.empty())) {
    fmt::print(stderr, "yado: say where it answers, by --port and --host-name; or --spec-only, for a spec to be filled in\n");
    return Exit::usage;
  }
  const Virsh virsh(options.uri, options.domain);
  const auto xml = virsh.xml();
  if (!xml) return complain(xml.error());
  const auto domain = adopt::read_domain(*xml);
  if (!domain) return complain(domain.error());
  const std::string name = options.name.empty() ? domain->workload : options.name;
  if (!valid_name(name) || name.size() > spec::longest_workload_name) {
    fmt::print(stderr, "yado: \"{}\" is no name of a workload: give one by --name\n", name);
    return Exit::usage;
  }
  const std::string file = name + ".toml";
  if (const Status written = write_spec(file, adopt::spec_text(*domain, {.workload = name, .hosts = options.hosts, .port = options.port})); !written) return complain(written.error());
  tell(*domain);
  if (options.spec_only) {
    if (options.common.json)
      fmt::print("{}\n", api::dump_pretty({{"workload", name}, {"domain", domain->name}, {"spec", file}, {"missing", domain->obstacles}, {"changed", domain->changes}}));
    else
      fmt::print("{} is written; the domain is as it was. Shut it down (virsh shutdown) and off its autostart before `yado run {}`\n", file, file);
    return Exit::ok;
  }
  if (!domain->obstacles.empty())
    return complain(fail(Errc::unsupported, "{} is not adopted, because it would miss something (above); it is as it was. {} is what would be left of it", options.domain, file).error());
  // As long as nothing has changed: whether it can be deployed at all.
  RunOptions run{.common = options.common, .file = file, .dry_run = true, .quiet = true};
  if (const int status = run_spec(run); status != Exit::ok) return status;
  if (const Status taken = take_from(virsh, options); !taken) return complain(taken.error());
  run.dry_run = run.quiet = false;
  const int status = run_spec(run);
  if (status != Exit::ok) fmt::print(stderr, "yado: it does not run. Its disks are as libvirt left them: `yado rm {}` and `virsh start {}` bring it back, and `virsh autostart {}` if libvirt started it by itself\n", name, options.domain, options.domain);
  return status;
}

}  // namespace

void add_adopt(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<AdoptOptions>();
  CLI::App* command = app.add_subcommand("adopt", "Make a virtual machine that libvirt manages a workload (docs/libvirt.md): write its spec, shut it down there, run it here");
  command->add_option("domain", options->domain, "Its name, number or UUID in libvirt")->required()->type_name("DOMAIN");
  command->add_option("--uri", options->uri, "Where libvirt is, such as qemu:///system; without it as virsh chooses")->type_name("URI");
  command->add_option("--name", options->name, "The workload's name; without it, made of the domain's")->type_name("NAME");
  command->add_option("--host-name", options->hosts, "HTTP host names that lead to it; needed to run it")->type_name("HOST")->allow_extra_args(false);
  command->add_option("--port", options->port, "Where it speaks HTTP/1.1; needed to run it")->type_name("PORT");
  command->add_flag("--spec-only", options->spec_only, "Write NAME.toml, and leave the domain alone");
  command->add_option("--grace", options->grace_s, "How long it may take to shut down, in seconds")->capture_default_str()->type_name("SECONDS");
  command->add_flag("--destroy", options->destroy, "Do not ask it to shut down: pull the plug");
  add_common(*command, options->common);
  on_chosen(*command, outcome, [options] { return adopt_domain(*options); });
}

}  // namespace yado::cli
