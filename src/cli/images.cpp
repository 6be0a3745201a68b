// yado images: the ready images and who holds them; and one image from near.

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/command.hpp"
#include "cli/images.hpp"
#include "cli/table.hpp"

namespace yado::cli {
namespace {

int list(const Common& common) {
  auto client = Client::control(common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  auto answer = client->call("GET", "/v1/images");
  if (!answer) return complain(*client, answer.error());
  if (common.json) {
    fmt::print("{}\n", api::dump_pretty(*answer));
    return Exit::ok;
  }
  std::vector<std::vector<std::string>> rows{{"IMAGE", "WORKLOAD", "CURRENT", "BASE", "SIZE", "AGE", "HELD BY"}};
  for (const auto& one : (*answer)["images"]) {
    const auto holders = one.value("holders", std::vector<std::string>());
    rows.push_back({one.value("id", ""), one.value("workload", ""), one.value("current", false) ? "yes" : "no", one.value("base", "-"),
                    format_bytes(one.value("bytes", 0ull)), format_age(one.value("age_ms", 0ll)),
                    fmt::format("{}", fmt::join(holders, ", "))});
  }
  fmt::print("{}", format_table(rows));
  return Exit::ok;
}

/// `show` and `export` ask control for the hosts that have the image; with --store they look into that one, as root on its host, as `import` always does.
CLI::App* add_near(CLI::App& images, const char* name, const char* what, ImageOptions& options, const char* store) {
  CLI::App* command = images.add_subcommand(name, what);
  command->add_option("--store", options.store, store)->type_name("DIR");
  command->add_option("--control", options.control, "Control's socket; without, $YADO_CONTROL, then that of the only lab that runs")->type_name("PATH");
  command->add_flag("--json", options.json, "Print JSON (docs/cli.md) to stdout");
  return command;
}

}  // namespace

void add_images(CLI::App& app, Outcome& outcome) {
  auto common = std::make_shared<Common>();
  auto near = std::make_shared<ImageOptions>();
  CLI::App* command = app.add_subcommand(
      "images", "List the ready images and the hosts that hold them; or look into one");
  add_common(*command, *common);
  command->require_subcommand(0, 1);

  constexpr const char* from_store = "Look into this directory, <agent's --state>/images on this host, instead of asking control";
  CLI::App* show = add_near(*command, "show",
                            "Parts, members by host, what it is a delta of, records, bytes on disk, working set", *near, from_store);
  show->add_option("image", near->id, "Id of the image")->required()->type_name("ID");
  show->add_flag("--verify", near->verify, "Read all of it, its members and its bases that are here, and compare every checksum");

  CLI::App* exporting = add_near(
      *command, "export", "Write the guest's memory at the image's cut as a sparse file, base and deltas taken together", *near, from_store);
  exporting->add_option("image", near->id, "Id of the image")->required()->type_name("ID");
  exporting->add_option("--flat", near->file, "The file to make: offset = address in the guest, zeros are holes")
      ->required()
      ->type_name("FILE");

  CLI::App* importing = add_near(*command, "import", "Make an image of a memory file; print its id", *near, "Directory of the images: <agent's --state>/images; without, /var/lib/yado/agent/images");
  importing->add_option("file", near->file, "Memory: offset = address in the guest")->required()->type_name("FILE");
  importing->add_option("--workload", near->workload, "Whose memory it is")->required()->type_name("NAME");
  importing->add_option("--like", near->like, "Take devices, disks and properties from this image; without, there is memory alone")
      ->type_name("ID");
  importing->add_option("--id", near->id, "Id of the new image; without, one is made")->type_name("ID");

  on_chosen(*command, outcome, [=] {
    if (show->parsed()) return show_image(*near);
    if (exporting->parsed()) return export_image(*near);
    if (importing->parsed()) return import_image(*near);
    return list(*common);
  });
}

}  // namespace yado::cli
