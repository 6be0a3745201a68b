#include "agent/images.hpp"

#include <sys/stat.h>

#include <algorithm>

#include "image/chain.hpp"
#include "image/checksum.hpp"
#include "image/fingerprint.hpp"
#include "os/clock.hpp"

namespace yado::agent {
namespace {

/// Changes when any file of the image was written, cut or replaced. Not when it only got another name, which is a change of its inode: a restore shares the image's disks.
Result<std::string> stamp_of(const image::Store& store, const image::Manifest& manifest) {
  image::Checksum sum;
  const auto add = [&](const std::filesystem::path& path) -> Status {
    struct stat found {};
    if (::stat(path.c_str(), &found) != 0) return fail_errno(fmt::format("image {}: {}", manifest.id, path.native()));
    sum.add_field(path.native());
    for (const auto number :
         {static_cast<std::uint64_t>(found.st_ino), static_cast<std::uint64_t>(found.st_size),
          static_cast<std::uint64_t>(found.st_mtim.tv_sec), static_cast<std::uint64_t>(found.st_mtim.tv_nsec)})
      sum.add_field(number);
    return {};
  };
  YADO_TRY(add(store.root() / manifest.id.str() / "manifest.json"), "stamp");
  for (const image::Part& part : manifest.parts)
    for (const image::File& file : part.files)
      YADO_TRY(add(store.part_directory(manifest.id, part.name) / file.path), "stamp");
  return sum.hex();
}

struct Checked {
  image::Manifest manifest;
  std::string stamp;
};

}  // namespace

namespace {

/// The files and directories that an instance begins from.
std::vector<std::string> made_of(const WorkloadSpec& spec) {
  if (spec.kind == Kind::container) return {spec.container.root};
  std::vector<std::string> files = spec.vm.disks;
  for (const std::string* one : {&spec.vm.kernel, &spec.vm.initramfs})
    if (!one->empty()) files.push_back(*one);
  return files;
}

}  // namespace

std::vector<image::Part> parts_of(Kind kind) {
  switch (kind) {
    case Kind::container: return {{image::PartType::criu, "criu", {}}, {image::PartType::disk, "disk", {}}};
    case Kind::vm:
      return {{image::PartType::device_state, "device-state", {}}, {image::PartType::disk, "disk", {}},
              {image::PartType::pages, "memory", {}}};
  }
  return {};
}

std::filesystem::path disks_of(const image::Store& store, const ImageId& image) { return store.part_directory(image, "disk"); }

WorkloadSpec as_of(WorkloadSpec spec, const image::Manifest& manifest) {
  spec.name = manifest.workload;
  return spec;
}

Status let_restorer_read(const std::filesystem::path& criu_part) {
  namespace fs = std::filesystem;
  std::error_code error;
  const auto allow = [&](const fs::path& path, fs::perms wanted) {
    const fs::perms mode = fs::status(path, error).permissions();
    if (!error && (mode & wanted) != wanted) fs::permissions(path, wanted, fs::perm_options::add, error);
  };
  allow(criu_part, fs::perms::group_read | fs::perms::group_exec | fs::perms::others_read | fs::perms::others_exec);
  for (fs::directory_iterator it(criu_part, error), end; !error && it != end; it.increment(error))
    allow(it->path(), fs::perms::group_read | fs::perms::others_read);
  if (error) return fail(Errc::io, "let the restorer read {}: {}", criu_part.native(), error.message());
  return {};
}

Images::Images(image::Store store, Workers& workers) : store_(std::move(store)), workers_(workers) {
  for (image::Manifest& manifest : store_.list()) images_.emplace(manifest.id, std::move(manifest));
}

Result<std::stop_token> Images::begin_change(const ImageId& id, const boost::asio::any_io_executor& executor) {
  const auto known = images_.find(id);
  if (known == images_.end()) return fail(Errc::not_found, "there is no image {}", id);
  if (in_use_->contains(known->second.workload)) return fail(Errc::conflict, "image {} is in use", id);
  const auto [entry, begun] = changing_.try_emplace(id, executor);
  if (!begun) return fail(Errc::conflict, "image {} is being changed already", id);
  return entry->second.stop.get_token();
}

void Images::end_change(const ImageId& id) {
  if (const auto change = changing_.extract(id)) change.mapped().ended.give(true);
}

boost::asio::awaitable<void> Images::give_way(ImageId id) {
  for (auto change = changing_.find(id); change != changing_.end(); change = changing_.find(id)) {
    change->second.stop.request_stop();
    const Promise<bool> ended = change->second.ended;
    co_await ended.get();
  }
}

boost::asio::awaitable<void> Images::give_way(WorkloadId workload) {
  std::vector<ImageId> all;
  for (const auto& [id, manifest] : images_)
    if (manifest.workload == workload) all.push_back(id);
  for (const ImageId& id : all) co_await give_way(id);
}

std::shared_ptr<void> Images::in_use(const WorkloadId& workload) {
  const auto entry = in_use_->insert(workload);
  return {nullptr, [all = in_use_, entry](void*) { all->erase(entry); }};
}

void Images::stop_changes() {
  for (auto& [id, change] : changing_) change.stop.request_stop();
}

boost::asio::awaitable<Result<image::Manifest>> Images::verified(ImageId id) {
  const auto of = images_.find(id);
  const std::shared_ptr<void> use = of == images_.end() ? nullptr : in_use(of->second.workload);
  co_await give_way(id);
  const auto known = stamps_.find(id);
  const std::string stamp = known == stamps_.end() ? "" : known->second;
  std::function<Result<Checked>()> work = [this, id, stamp]() -> Result<Checked> {
    YADO_ASSIGN(image::Manifest manifest, store_.read(id), "image");
    for (const image::Part& part : manifest.parts)
      if (part.type == image::PartType::criu) YADO_TRY(let_restorer_read(store_.part_directory(id, part.name)), "image");
    auto before = stamp_of(store_, manifest);
    if (!before) return fail(Errc::corrupt, "{}", before.error().message);
    if (*before != stamp) YADO_TRY(store_.verify(id), "verify");
    return Checked{std::move(manifest), std::move(*before)};
  };
  auto checked = co_await workers_.run(std::move(work));
  if (!checked) {
    stamps_.erase(id);
    co_return std::unexpected(checked.error());
  }
  stamps_[id] = checked->stamp;
  co_return std::move(checked->manifest);
}

boost::asio::awaitable<void> Images::added(image::Manifest manifest) {
  const ImageId id = manifest.id;
  std::function<Result<std::string>()> work = [this, manifest] { return stamp_of(store_, manifest); };
  auto stamp = co_await workers_.run(std::move(work));
  if (stamp) stamps_[id] = std::move(*stamp);
  images_[id] = std::move(manifest);
}

boost::asio::awaitable<Status> Images::remove(ImageId id) {
  co_await give_way(id);
  auto known = images_.extract(id);
  auto stamp = stamps_.extract(id);
  std::vector<image::Member> elsewhere;
  if (known)
    for (const image::Member& member : known.mapped().members)
      if (!images_.contains(member.id)) elsewhere.push_back(member);
  std::function<Status()> work = [this, id, elsewhere]() -> Status {
    YADO_TRY(store_.remove(id), "remove");
    for (const image::Member& member : elsewhere) YADO_TRY(store_.remove(member.id, image::Store::Dependents::ignore), "remove indices");
    return {};
  };
  Status removed = co_await workers_.run(std::move(work));
  if (!removed && removed.error().code == Errc::conflict) {  // another image needs it: it stays
    images_.insert(std::move(known));
    stamps_.insert(std::move(stamp));
  }
  co_return removed;
}

boost::asio::awaitable<Status> Images::remove_with_dependents(ImageId id) {
  std::vector<image::Manifest> all;
  for (const auto& [name, manifest] : images_) all.push_back(manifest);
  Status done;
  for (const ImageId& each : image::removal_order(all, id)) {
    Status removed = co_await remove(each);
    if (!removed) done = std::move(removed);
  }
  co_return done;
}

boost::asio::awaitable<Result<std::string>> Images::fingerprint(WorkloadSpec spec) {
  std::vector<std::string> files = made_of(spec);
  std::function<Result<std::string>()> work = [files]() -> Result<std::string> {
    std::string all;
    for (const std::string& file : files) {
      YADO_ASSIGN(const std::string one, image::fingerprint(file), "fingerprint");
      all += one;
    }
    return all;
  };
  auto found = co_await workers_.run(std::move(work));
  if (found) roots_[files] = *found;
  co_return found;
}

boost::asio::awaitable<Result<std::string>> Images::spec_hash(WorkloadSpec spec) {
  if (const auto known = roots_.find(made_of(spec)); known != roots_.end()) co_return image::spec_hash(spec, known->second);
  co_return co_await fresh_spec_hash(std::move(spec));
}

boost::asio::awaitable<Result<std::string>> Images::fresh_spec_hash(WorkloadSpec spec) {
  auto found = co_await fingerprint(spec);
  if (!found) co_return std::unexpected(found.error());
  co_return image::spec_hash(spec, *found);
}

bool Images::current(const image::Manifest& manifest, const WorkloadSpec* spec) const {
  if (!spec || manifest.member_of) return true;  // a share is as good as what it is a share of
  const auto root = roots_.find(made_of(*spec));
  return root == roots_.end() || manifest.spec_hash == image::spec_hash(*spec, root->second);
}

ImageReport Images::report(const image::Manifest& manifest) const {
  const std::int64_t age_ms = os::wall_ms() - manifest.created_wall_ms;  // clocks of hosts differ: never below zero
  std::vector<ImageId> members;
  for (const image::Member& member : manifest.members) members.push_back(member.id);
  return {.id = manifest.id,
          .workload = manifest.workload,
          .spec_hash = manifest.spec_hash,
          .bytes = manifest.bytes(),
          .age = milliseconds(std::max<std::int64_t>(0, age_ms)),
          .member_of = manifest.member_of,
          .base = manifest.base,
          .merged = manifest.stands_for.has_value(),
          .members = std::move(members)};
}

}  // namespace yado::agent
