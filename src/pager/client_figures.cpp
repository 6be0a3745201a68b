#include <nlohmann/json.hpp>

#include "pager/client.hpp"

namespace yado::pager {
using nlohmann::json;

json Client::figures() const {
  const PagerFigures now = pager_.figures();
  json servers = json::array();
  const bool saving = watch_->under_way();
  const auto [counts, redundancy] = network_.run([&] {
    const auto& members = network_.servers().members();
    for (std::size_t i = 0; i < members.size(); ++i) {
      const ServerSet::Member& one = members[i];
      if (!one.link || one.gone) continue;
      // Nobody waits for its answer: what it says is in the next figures.
      if (saving && one.link->alive())
        one.link->stat([watch = watch_, host = one.told.host](const Result<SessionStats>& stats) {
          if (stats) watch->said(host, *stats);
        });
      const auto& traffic = one.link->traffic();
      servers.push_back({{"host", one.told.host}, {"alive", one.link->alive()}, {"leaving", one.leaving}, {"bytes_sent", traffic.bytes_sent},
                         {"bytes_received", traffic.bytes_received}, {"pages", network_.memory().pages_at(i)}});
    }
    return std::pair(network_.memory().traffic(), network_.memory().pages_without_redundancy());
  });
  json figures{{"memory_bytes", config_.memory_bytes},
               {"local_bytes", now.table.in_file * page_bytes},
               {"hot_bytes", now.table.mapped * page_bytes},
               {"faults", now.table.faults},
               {"minor_faults", now.table.minor_faults},
               {"paged_in", now.table.paged_in},
               {"paged_out", now.table.paged_out},
               {"waiting", now.table.waiting},
               {"over_limit", now.table.over_limit},
               {"remote_faults", now.remote_faults},
               {"fault_p50_us", now.fault_p50 / std::chrono::microseconds(1)},
               {"fault_p99_us", now.fault_p99 / std::chrono::microseconds(1)},
               {"pages_sent", counts.pages_sent},
               {"pages_clean", counts.pages_clean},
               {"pages_zero", counts.pages_zero},
               {"pages_rebuilt", counts.pages_rebuilt},
               {"pages_without_redundancy", redundancy},
               {"servers", std::move(servers)}};
  if (saving) figures["saving"] = saving_json();
  else if (const std::uint64_t left = pager_.unsaved()) figures["to_move_bytes"] = left * page_bytes;
  return figures;
}

json Client::saving_json() const {
  json shares = json::array();
  for (const auto& [host, share] : watch_->shares(pager_.unsaved()))
    shares.push_back({{"host", host}, {"saved_bytes", share.saved * page_bytes}, {"left_bytes", share.left * page_bytes}});
  return shares;
}

}  // namespace yado::pager
