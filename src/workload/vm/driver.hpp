#pragma once
// Virtual machines as a kind of workload (workload/instance.hpp). The parts of their images are called "device-state",
// "disk" and "memory". For a supervisor that lives in the instance's network
// namespace: the guest gets the instance's address (net/guest_network.hpp).

#include <memory>

#include "model/workload.hpp"
#include "workload/instance.hpp"
#include "workload/vm/spec.hpp"

namespace yado::vm {

/// What the pager of a VM with split memory is besides its spec.
struct PagerIdentity {
  std::vector<std::string> program;  ///< `yado pager`
  std::string session;               ///< names this memory on the servers: the workload, so that a later epoch fences an earlier one there, too
  std::uint64_t epoch = 0;
  std::filesystem::path identity;    ///< directory, for TLS
};

/// `place`: directory and cgroup; its network is the calling process's when it starts or restores. Memory servers are reached
/// from the network in which this is called. `port`: where the guest's service listens.
std::unique_ptr<workload::Driver> make_driver(std::string name, const yado::VmSpec& spec, Place place, std::uint16_t port,
                                              const PagerIdentity& pager = {});

// Images of a VM with split memory: parts of type pages are "memory" and, of shares that other hosts saved and that are in this
// host's store, "memory@HOST". Properties "load@HOST": the share lies in that host's store, which is asked for it, by this name.
// Of a delta there are its bases, too, all parts of them, the oldest first: "base-00/memory", "base-00/memory@HOST", "base-01/…"; a share that lies elsewhere
// has its index here then, and "load@HOST" are its names with those of its bases, a blank between them, the oldest first.
// "base-NN/disk": those that its part "disk" lies on, the oldest first; none when it has all of its disks.
// "shares": what each host saved, a line each: host, pages, bytes, sum of its manifest (a `-` for none). "cut": the instant. "base_cut": of a delta, that of its base.
inline constexpr std::string_view share_prefix = "memory@", load_prefix = "load@", base_prefix = "base-";
/// Among the directories of an image, but a file: in which order its pages were used after its cut.
inline constexpr const char* use_key = "use";
// What is handed over to another main host has no part "memory" but the property "servers": the sessions of memory servers that hold
// all of it (pager::servers_from_text). Whoever goes on with it inherits them, once.
inline constexpr const char* servers_property = "servers";
/// The same: names of images with parts "disk" only, the oldest first, a blank between them; its own disks lie on theirs. Whoever restores has their
// directories as "ahead-00/disk", …
inline constexpr const char* ahead_property = "ahead";
inline constexpr std::string_view ahead_prefix = "ahead-";
/// The same: how it was left, for people.
inline constexpr const char* rounds_property = "rounds";
/// What a checkpoint says beside what belongs into the image: its part "disk" lies on that of its base (image::PartType::disk_delta).
inline constexpr const char* disks_are_delta_property = "disks_are_delta";
// Property "disk_state", "frozen": the guest's agent had its file systems at rest at the cut.
inline constexpr const char* disks_property = "disk_state";

}  // namespace yado::vm
