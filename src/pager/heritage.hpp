#pragma once
// Whose a memory's sessions are when more than one main host may want them. The one before has left them and stands still; the next one reads
// what it left, and inherits the sessions right in front of its guest's first step; or the one before takes them back, the same way.
//
//   host before, epoch 3            each memory server              next host, epoch 4
//     │  all pages, then still            owner: 3                    │  reads, loads devices
//     │                                   owner: 4  ◀─ "4, from 3" ── │  … from all of them: its guest runs
//     │  ── "5, from 3" ─▶ refused                                    │
//   or:
//     │  ── "5, from 3" ─▶                owner: 5                    │
//     │  … from all there are: it runs         refused ◀─ "4, from 3" │  never runs
//
// A server changes the owner in one step. Both need every session that is to be had, so that at most one of them runs, and who owns them is the
// evidence: until the next one does, nothing of what was left has been changed; from then on its guest may have run.

#include <boost/asio/any_io_executor.hpp>
#include <memory>
#include <vector>

#include "pager/server_link.hpp"
#include "pager/service.hpp"

namespace yado::pager {

/// What each of them says of its session, all asked at once. From any thread but theirs.
std::vector<Result<SessionStats>> stats_of(const boost::asio::any_io_executor& network, const std::vector<std::shared_ptr<ServerLink>>& links);

/// For the next main host, once nothing changes any more: adds to each server what its session is known by.
void describe(ServiceConfig::Server& server, const ServerLink& link, std::uint64_t epoch, const SessionStats& stats);
/// `conflict`: what was left there has been changed since.
Status is_as_left(const ServiceConfig::Server& server, const SessionStats& stats);

/// The sessions are inherited under `epoch`, all at once; answers in the order of `links`. From any thread but theirs.
std::vector<Result<SessionStats>> inherit(const boost::asio::any_io_executor& network, const std::vector<std::shared_ptr<ServerLink>>& links, std::uint64_t epoch);

/// Of a process's generations the upper half: of two pagers under one epoch, on one host, the later one is another life.
std::uint32_t life_now();

}  // namespace yado::pager
