#pragma once
// The images of this host as the agent uses them: found in the store, verified before use, known to be current or not.
//
// "Verified before use": every checksum was compared by this agent process, and since then no file of the image has
// got another inode, length or mtime (compared at every use, some microseconds per file). A file that was cut,
// overwritten or replaced is noticed, unless its mtime was put back on purpose. Bits that rot on the disk underneath are noticed by the next agent process, and of
// pages by whoever reads them, which counts as a change of the file (image/page_part.hpp).
// Full verification reads the whole image, which on a raise would cost as much as the restore; so the agent verifies
// what it finds at its start in the background, and what it wrote or fetched itself was checksummed on the way.
//
// "Current": the hash of the spec and of the root file system is the one in the manifest. The root is looked at again
// in the background (fresh_spec_hash), not on the way of a raise. An image that is not current is not reported.

#include <map>
#include <memory>
#include <set>
#include <stop_token>
#include <string>
#include <vector>

#include "agent/workers.hpp"
#include "image/store.hpp"
#include "model/cluster.hpp"

namespace yado::agent {

/// What an image of such a workload consists of; the names are its driver's.
std::vector<image::Part> parts_of(Kind kind);
/// The directory of an image's disks.
std::filesystem::path disks_of(const image::Store& store, const ImageId& image);

/// `spec` under the name of who the image was taken of: who is raised from it may be a clone of that.
WorkloadSpec as_of(WorkloadSpec spec, const image::Manifest& manifest);

/// While CRIU restores, the processes that it makes read the image themselves, already as the container's own users: so
/// the files of its part must be readable for all. Nobody else gets there, because the store is a directory of mode
/// 0700.
Status let_restorer_read(const std::filesystem::path& criu_part);

class Images {
 public:
  /// Blocks while it reads the manifests.
  Images(image::Store store, Workers& workers);

  const image::Store& store() const { return store_; }
  const std::map<ImageId, image::Manifest>& all() const { return images_; }

  /// The files of an image are about to be exchanged for equal ones (merging). Whoever wants to use it meanwhile stops the token, and waits for
  /// end_change(). `conflict` while its workload's images are in use, or when it is being changed already. `executor`: of the io_context.
  Result<std::stop_token> begin_change(const ImageId& id, const boost::asio::any_io_executor& executor);
  void end_change(const ImageId& id);
  /// As long as it lives no change of the workload's images begins.
  [[nodiscard]] std::shared_ptr<void> in_use(const WorkloadId& workload);
  bool changing(const ImageId& id) const { return changing_.contains(id); }
  /// Whoever changes the image, or any of the workload's, is stopped and has ended when it returns.
  boost::asio::awaitable<void> give_way(ImageId id);
  boost::asio::awaitable<void> give_way(WorkloadId workload);
  void stop_changes();

  /// The manifest of an image that may be used now; who changes it gives way. Errors: `not_found`, `corrupt`.
  boost::asio::awaitable<Result<image::Manifest>> verified(ImageId id);
  /// An image came into being here, checksummed by its writer.
  boost::asio::awaitable<void> added(image::Manifest manifest);
  /// With what is kept here of its members' indices.
  boost::asio::awaitable<Status> remove(ImageId id);
  /// It is damaged, or of another spec: it goes, and what is of no use without it (deltas, the image that it is a share of, shares).
  boost::asio::awaitable<Status> remove_with_dependents(ImageId id);

  /// What an image of `spec` taken now would carry. The root's fingerprint may be as old as the last fresh_spec_hash of
  /// it.
  boost::asio::awaitable<Result<std::string>> spec_hash(WorkloadSpec spec);
  /// The same, of the root as it is now.
  boost::asio::awaitable<Result<std::string>> fresh_spec_hash(WorkloadSpec spec);
  /// False only when it is known to be of another spec or root.
  bool current(const image::Manifest& manifest, const WorkloadSpec* spec) const;

  ImageReport report(const image::Manifest& manifest) const;

 private:
  boost::asio::awaitable<Result<std::string>> fingerprint(WorkloadSpec spec);
  struct Change {
    explicit Change(const boost::asio::any_io_executor& executor) : ended(executor) {}
    std::stop_source stop;
    Promise<bool> ended;
  };

  image::Store store_;
  Workers& workers_;
  std::map<ImageId, image::Manifest> images_;
  std::map<ImageId, std::string> stamps_;     ///< of the files when they were verified
  std::map<ImageId, Change> changing_;
  std::shared_ptr<std::multiset<WorkloadId>> in_use_ = std::make_shared<std::multiset<WorkloadId>>();  ///< outlived by who uses them, at the end
  std::map<std::vector<std::string>, std::string> roots_;  ///< what an instance begins from -> fingerprint
};

}  // namespace yado::agent
