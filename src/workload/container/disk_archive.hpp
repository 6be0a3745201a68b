#pragma once
// The `disk` part of an image: the upper layer of the overlay as one pax archive, upper.tar, with numeric ids,
// extended attributes (overlayfs marks opaque directories by them), whiteouts (character devices 0:0) and holes.
// Sockets are left out: CRIU makes them anew when it restores their owners.

#include <filesystem>

#include "base/error.hpp"

namespace yado::container {

/// Error `no_space` when the target is full; what was written is removed.
Status pack_disk(const std::filesystem::path& upper, const std::filesystem::path& part);
/// `upper` is an empty directory.
Status unpack_disk(const std::filesystem::path& part, const std::filesystem::path& upper);

/// Unpacks any archive libarchive knows (tar, compressed or not) into an existing directory. Entries that would lead
/// out of it are `corrupt`.
Status unpack_archive(const std::filesystem::path& archive, const std::filesystem::path& into);

}  // namespace yado::container
