#pragma once
// Images of a store that belong together: deltas and their bases, main images and their members
// (docs/formats/image.md, "Sets" and "Merging").
//
//   main M1 ─── member M1.h2            one cut, every page of the guest in exactly one of their parts
//     ▲ base
//   main M2 ─── member M2.h2            a delta: the parts have what changed since M1
//
// Like the store, not for two threads at the same images.

#include <stop_token>
#include <vector>

#include "base/error.hpp"
#include "image/page_chain.hpp"
#include "image/store.hpp"

namespace yado::image {

/// The guest's memory at the cut of `id` (of its main image, if it is a member), from what is here: images, and indices
/// that were kept of those that lie elsewhere. The logs of the latter cannot be read (`unavailable`, when a page of
/// them is asked for). Goes down to the first image that needs no base. Errors: `not_found` names the image that is not
/// here at all, and the host that had it; `corrupt` for a member that is not the one its main image names, or bases in
/// a circle; `invalid_argument` for more than PageChain::max_images, or an image without pages; those of
/// PageChain::make.
Result<PageChain> load_chain(const Store& store, const ImageId& id);

/// `id`, its base, the base of that …, as far as they are here (the last may name a base that is not), newest first. Of
/// a member those of its main image. At most PageChain::max_images.
Result<std::vector<Held>> bases(const Store& store, const ImageId& id);

/// What the chain of `id` is made of, the self-contained one first: of each image the main one, then its members, which are here whole
/// or by their indices. Errors as of load_chain.
Result<std::vector<std::vector<Held>>> sets_of_chain(const Store& store, const ImageId& id);

/// In which order images go so that none that stays is useless: what depends on `id` (deltas, newest first), `id`, its
/// members. Of a member that of its main image. Pure; `images` is Store::list(). May name main images that are not
/// among them.
std::vector<ImageId> removal_order(const std::vector<Manifest>& images, const ImageId& id);

enum class Deltas { refuse, remove };
/// Removes `id` with its members, as far as they are here, and with `Deltas::remove` what depends on it; without,
/// `conflict` names such an image. May be repeated after a crash; a main image that lies elsewhere will do. A member by
/// its own name is removed alone.
Status remove_set(const Store& store, const ImageId& id, Deltas deltas = Deltas::refuse);

/// Of an image in the making that has the part of type disk_delta of `id`: it gets the files of those that this lies on, by hard links, and becomes a
/// disk. Nothing to do without such a part. Errors: `corrupt`, `unavailable` for a base that lies elsewhere.
Status complete_disks(const Store& store, const ImageId& id, Draft& draft, Manifest& manifest);

/// How a chain is merged; every field may be empty.
struct MergeChain {
  std::stop_token stop;  ///< then `canceled`
  LogReader elsewhere;   ///< reads logs of which only the indices are here
  std::function<Status(std::uint64_t bytes)> copied;  ///< as in MergeOptions
};
/// Makes the parts of pages of `id` self-contained, and puts the result in the place of `id` at once: same id, same
/// cut, same pages, so deltas of it go on fitting. Of a set it merges the share of `id` alone. A base that nothing of
/// the set needs any more, as far as is known here, is not named any more. Returns what the image is now; nothing
/// changes when there is nothing to do, or after an error (`canceled` when stopped, `unavailable` when a log that is
/// needed is not here and cannot be read `elsewhere`, those of load_chain).
Result<Manifest> merge_chain(const Store& store, const ImageId& id, const MergeChain& how);

/// Lets go of kept indices that no image here has as its member's: what was only needed to merge a share.
Status forget_indices(const Store& store);

}  // namespace yado::image
