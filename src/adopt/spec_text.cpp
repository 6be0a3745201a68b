#include <algorithm>

#include "adopt/domain.hpp"

namespace yado::adopt {
namespace {

/// A TOML basic string in which no `${` is expanded (docs/spec.md).
std::string quoted(std::string_view text) {
  std::string made = "\"";
  for (std::size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    if (c == '$' && text.substr(i).starts_with("${")) made += "$$";
    else if (c == '"' || c == '\\') made += {'\\', text[i]};
    else if (c < 0x20 || c == 0x7f) made += fmt::format("\\u{:04x}", c);
    else made += text[i];
  }
  return made + "\"";
}

std::string list(const std::vector<std::string>& texts) {
  std::vector<std::string> all;
  std::ranges::transform(texts, std::back_inserter(all), quoted);
  return fmt::format("[{}]", fmt::join(all, ", "));
}

std::string comments(std::string_view title, const std::vector<std::string>& lines) {
  std::string made;
  for (const std::string& line : lines) made += fmt::format("#   {}\n", line);
  return made.empty() ? made : fmt::format("# {}\n{}", title, made);
}

}  // namespace

std::string spec_text(const Domain& domain, const Wishes& wishes) {
  const VmSpec& vm = domain.vm;
  std::string made = fmt::format("# libvirt's domain {} as a workload, by `yado adopt`.\n", quoted(domain.name));
  made += comments("What it needs and would not have:", domain.obstacles);
  made += comments("Not taken over, or otherwise than with libvirt:", domain.changes);
  made += fmt::format("name = {}\nkind = \"vm\"\n\n[vm]\n", quoted(wishes.workload));
  if (!vm.kernel.empty()) made += fmt::format("kernel = {}\n", quoted(vm.kernel));
  if (!vm.kernel.empty() && !vm.initramfs.empty()) made += fmt::format("initramfs = {}\n", quoted(vm.initramfs));
  if (!vm.kernel.empty() && !vm.command_line.empty()) made += fmt::format("command_line = {}\n", quoted(vm.command_line));
  if (!vm.disks.empty())
    made += fmt::format("# Never written to: what the guest writes is in overlays, which go with the instance. Each host that may run it needs them at these paths, with what\n"
                        "# they lie on (qemu-img info --backing-chain).\ndisks = {}\n", list(vm.disks));
  made += fmt::format("memory = \"{}MiB\"\nvcpus = {}\n", vm.memory_bytes >> 20, vm.vcpus);
  made += "# Checkpointed and moved while it runs, with what it wrote. `yado checkpoint` saves it; after its host's death it goes back to the last checkpoint.\nsplit = {}\n";
  made += "\n[service]\n";
  made += wishes.hosts.empty() ? "# Fill in: the HTTP host names that lead to it.\n# hosts = [\"www.example.org\"]\n" : fmt::format("hosts = {}\n", list(wishes.hosts));
  made += wishes.port == 0 ? "# Fill in: where it speaks HTTP/1.1.\n# port = 80\n" : fmt::format("port = {}\n", wishes.port);
  made += "# What proves that it works: better a page that needs its database, and `contains`.\nready = { path = \"/\", start_limit = \"5min\" }\n";
  made += "\n[policy]\n# What is on its disks is its own: never two of it at once.\nconsistency = \"exclusive\"\n";
  return made;
}

}  // namespace yado::adopt
