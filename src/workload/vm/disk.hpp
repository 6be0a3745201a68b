#pragma once
// Disks as files: a base image that is never written, and per instance qcow2 layers with what the instance wrote.
//
//   base image  ◀─ disk-0.qcow2 ◀─ disk-0.1.qcow2 ◀─ … ◀─ disk-0.K.qcow2    only the last one is written
//
// A save seals the last layer by putting a new one on top (disk_seal.hpp), and can then copy what is sealed while the
// guest runs. A layer is called the same in QEMU as its file, without ".qcow2".
//
// A restore does not copy what an image has: its layers are the image's own files, by hard links, and nobody writes to a layer that has another name
// (is_shared). The file system counts: when the image and all other instances of it are gone, the layer is like any other.

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "os/fd.hpp"
#include "workload/vm/spec.hpp"

namespace yado::vm {

enum class DiskFormat { raw, qcow2 };
std::string_view name_of(DiskFormat format);

/// By the file's first bytes, once, of a base image only: QEMU must never guess, because a guest with a raw disk could
/// write a qcow2 header into it that names any file of the host. Error `not_found`.
Result<DiskFormat> format_of(const std::filesystem::path& base);

/// The layers of an instance's disk that are in a directory, oldest first; empty: none. Numbers may be missing.
std::vector<std::filesystem::path> layers_of(const std::filesystem::path& directory, std::size_t disk);
std::filesystem::path first_layer(const std::filesystem::path& directory, std::size_t disk);
/// The one above: not there yet.
std::filesystem::path next_layer(const std::filesystem::path& directory, std::size_t disk);
/// QEMU's name of a layer.
std::string node_of(const std::filesystem::path& layer);

/// A new, empty overlay, as large as its base. Replaces nothing: `already_exists`. Error `no_space`.
Status make_overlay(const Qemu& qemu, const std::filesystem::path& base, const std::filesystem::path& overlay);

/// A copy in a new file: shared extents where the file system can (reflink), else as copy_sparse. Error `no_space`; on any
/// error nothing is left at `to`.
Status copy_disk(const std::filesystem::path& from, const std::filesystem::path& to);

/// The same file under another name, or a copy where that cannot be (another file system). Who has it must not write to it: it may be shared. Errors: those of copy_disk.
Status share_disk(const std::filesystem::path& from, const std::filesystem::path& to);
/// The file has other names: an image's, or of another instance of that. One that is not there is not shared.
bool is_shared(const std::filesystem::path& layer);

/// As copy_disk, into a file that is there, and stays the same file. After an error it is neither the one nor the other.
Status replace_content(const std::filesystem::path& from, const std::filesystem::path& to);

/// Data at the same offsets, holes and pages of zeros as holes, the same length.
Status copy_sparse(const os::Fd& from, const os::Fd& to);

}  // namespace yado::vm
