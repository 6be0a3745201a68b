#pragma once
// Images between hosts: one agent serves its store, another pulls a copy.
//
//   GET /v1/images/<id>/manifest                    200: the manifest (docs/formats/image.md)
//   GET /v1/images/<id>/parts/<part>/<path>         200: the file; with "range: bytes=<first>-<last>" 206: that piece
//   otherwise                                       403, 404, 405, 416, 500 with one line of text
//
// Holes stay holes: with "x-yado-holes: skip" beside the range, an answer carries data only. It covers as much of the
// file as has that many bytes of data, and the holes behind it:
//
//   range: bytes=0-1048575                          206, content-range: bytes 0-8388607/8392704
//   x-yado-holes: skip                              x-yado-data: 0-65535,4194304-5177343    the body's bytes, in order;
//                                                                                           "none": a hole and nothing
//                                                                                           else
// A server that does not know of it answers the range, holes and all.
//
// An image is as secret as the memory it holds: only other agents are served (by the name in their certificate), and
// whoever may use this host's unix socket.
//
// Reading, writing, hashing and fsync happen on `blocking`, the executor of some thread pool, so that the thread of
// the io_context goes on answering. Of an image's bytes there is at most one piece in memory per request. To shut down,
// join that pool before the io_context is destroyed.

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>

#include "base/error.hpp"
#include "base/time.hpp"
#include "image/store.hpp"
#include "wire/client.hpp"
#include "wire/server.hpp"

namespace yado::transfer {

/// What a pull asks for at a time, and what a server reads at a time.
inline constexpr std::uint64_t piece_bytes = 1 << 20;

/// True for the requests that serve() answers.
bool is_transfer(const wire::Request& request);
/// Answers one of them. `store` must live until it returns.
boost::asio::awaitable<void> serve(const image::Store& store, boost::asio::any_io_executor blocking,
                                   const wire::Request& request, wire::Responder& responder);

struct Progress {
  std::uint64_t bytes = 0;  ///< here already, holes included
  std::uint64_t of = 0;
};

/// So many bytes came: from when on more may be asked for. Empty: at once.
using Pace = std::function<std::chrono::steady_clock::time_point(std::uint64_t bytes)>;

/// Copies image `id` from the agent behind `from` into `store` and returns its manifest. Every file is compared with
/// the manifest before the image comes into being; after any error there is neither an image nor a draft, and nothing
/// is resumed. `limit` bounds every single answer (the manifest, a piece). `store` and `from` must live until it
/// returns. Errors: `already_exists` (here), `not_found` (there), `corrupt` (not what its manifest says), `no_space`
/// (before the first byte when it is plain that it cannot fit), and those of wire::Client::call.
boost::asio::awaitable<Result<image::Manifest>> pull(const image::Store& store, boost::asio::any_io_executor blocking,
                                                     ImageId id, wire::Client& from, nanoseconds limit,
                                                     std::function<void(Progress)> on_progress, Pace pace = {});

/// Only the manifest and the indices of its pages, for image::Store::keep_indices: enough to know where pages lie.
/// Errors as of pull.
boost::asio::awaitable<Result<image::Manifest>> pull_indices(const image::Store& store,
                                                             boost::asio::any_io_executor blocking, ImageId id,
                                                             wire::Client& from, nanoseconds limit);

/// `bytes` of one file of an image, at most piece_bytes, from `offset` on, holes as zeros. `corrupt` when the file is shorter there; others as of pull.
boost::asio::awaitable<Result<std::string>> pull_bytes(ImageId id, std::string part, std::string path, std::uint64_t offset,
                                                       std::uint64_t bytes, wire::Client& from, nanoseconds limit);

}  // namespace yado::transfer
