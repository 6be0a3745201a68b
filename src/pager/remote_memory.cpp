#include "pager/remote_memory.hpp"

#include <algorithm>
#include <bit>
#include <map>

#include "base/check.hpp"
#include "base/log.hpp"

namespace yado::pager {
namespace {

/// Neighbours go to the same servers, so that a window is one request; regions are spread.
constexpr PageNumber region_pages = 512;
constexpr unsigned most_rebuilds_under_way = 2;

std::uint16_t bit(std::size_t server) { return static_cast<std::uint16_t>(1U << server); }

}  // namespace

Copies::Copies(const Options& options, std::vector<PageServer*> servers)
    : options_(options), servers_(std::move(servers)), entries_(options.pages) {
  YADO_CHECK(options.copies == 1 || options.copies == 2, "{} copies", options.copies);
  YADO_CHECK(servers_.size() <= 16, "{} servers", servers_.size());
}

void Copies::adopt(std::span<const KindRun> runs, std::size_t server) {
  for (const KindRun& run : runs)
    for (PageNumber page = run.first; page < run.first + run.pages && page < entries_.size(); ++page) {
      entries_[page].zero = run.kind == PageKind::zero;
      entries_[page].holders |= bit(server);
    }
}

Copies::Servers Copies::alive() const {
  Servers servers = 0;
  for (std::size_t i = 0; i < servers_.size(); ++i)
    if (servers_[i]->alive()) servers |= bit(i);
  return servers;
}

Copies::Servers Copies::targets(PageNumber page, Servers among) const {
  Servers chosen = 0;
  const std::size_t count = servers_.size();
  for (std::size_t i = 0; i < count && std::popcount(chosen) < static_cast<int>(options_.copies); ++i)
    if (const std::size_t at = (page / region_pages + i) % count; servers_[at]->writable()) chosen |= among & bit(at);
  return chosen;
}

// ---- fetch ---------------------------------------------------------------------------------------------------------

struct Copies::Fetching {
  Arrived arrived;
  bool failed = false;
};

void Copies::fetch(std::vector<PageNumber> pages, Arrived arrived) {
  auto fetching = std::make_shared<Fetching>(std::move(arrived));
  Piece zeroes;
  std::vector<PageNumber> others;
  for (const PageNumber page : pages) (entries_[page].zero ? zeroes.pages : others).push_back(page);
  if (!others.empty()) fetch_from_servers(fetching, std::move(others));
  if (zeroes.pages.empty() || fetching->failed) return;
  zeroes.contents.resize(zeroes.pages.size(), nullptr);
  fetching->arrived(std::move(zeroes));
}

void Copies::fetch_from_servers(const std::shared_ptr<Fetching>& fetching, std::vector<PageNumber> pages) {
  std::map<std::size_t, std::vector<PageNumber>> by_server;
  for (const PageNumber page : pages) {
    const Servers holders = entries_[page].holders & alive();
    // One that answers now, rather than one that is being connected again.
    std::size_t chosen = servers_.size();
    for (std::size_t i = 0; i < servers_.size(); ++i) {
      const std::size_t at = (page / region_pages + i) % servers_.size();
      if ((holders & bit(at)) == 0) continue;
      if (chosen == servers_.size() || (!servers_[chosen]->connected() && servers_[at]->connected())) chosen = at;
    }
    if (chosen == servers_.size()) {
      if (std::exchange(fetching->failed, true)) return;
      return fetching->arrived(fail(Errc::unavailable, "page {} is lost: no server has it any more", page));
    }
    by_server[chosen].push_back(page);
  }
  for (auto& [server, its] : by_server) {
    auto runs = runs_of(its);
    servers_[server]->get(std::move(runs), [this, fetching, server = server, its = std::move(its)](auto answer) {
      got(fetching, server, its, std::move(answer));
    });
  }
}

/// A page that is not as it was given away counts as not there.
bool Copies::right(PageNumber page, const std::byte* content, bool zero_said) {
  const Entry& entry = entries_[page];
  if (!entry.sum_known) return true;
  static const std::array<std::byte, page_bytes> zeroes{};
  return sum_of(zero_said ? PageData(zeroes) : PageData(content, page_bytes), options_.seed) == entry.sum;
}

void Copies::got(const std::shared_ptr<Fetching>& fetching, std::size_t server, std::vector<PageNumber> pages,
                 Result<std::pair<Batch, Frame>> answer) {
  if (fetching->failed) return;
  if (!answer) {
    if (answer.error().code == Errc::canceled) return;
    // A living server that refuses will refuse again: its copies are of no use.
    if (servers_[server]->alive() && answer.error().code != Errc::corrupt) {
      log::warn("pager: {} does not give pages: {}", servers_[server]->name(), answer.error().text());
      for (const PageNumber page : pages) entries_[page].holders &= static_cast<Servers>(~bit(server));
    }
    return fetch_from_servers(fetching, std::move(pages));
  }
  Piece piece;
  std::vector<PageNumber> wrong;
  const std::byte* data = answer->first.data.data();
  for (const KindRun& run : answer->first.runs)
    for (PageNumber page = run.first; page < run.first + run.pages; ++page) {
      const std::byte* content = run.kind == PageKind::data ? data : nullptr;
      if (content != nullptr) data += page_bytes;
      if (run.kind == PageKind::absent || !right(page, content, content == nullptr)) {
        wrong.push_back(page);
        entries_[page].holders &= static_cast<Servers>(~bit(server));
      } else {
        piece.pages.push_back(page);
        piece.contents.push_back(content);
      }
    }
  piece.hold = answer->second.hold;
  if (!piece.pages.empty()) fetching->arrived(std::move(piece));
  if (wrong.empty()) return;
  counts_.wrong_contents += wrong.size();
  log::error("pager: {} gave {} pages, from page {} on, that are not what it was given", servers_[server]->name(),
             wrong.size(), wrong.front());
  fetch_from_servers(fetching, std::move(wrong));
}

// ---- store ---------------------------------------------------------------------------------------------------------

struct Copies::Storing {
  Evicted evicted;
  std::vector<std::uint32_t> versions;  ///< of each page when its store began
  Stored stored;
  std::size_t groups = 0;
  Status result;
};

/// Pages of one store that go to the same servers.
struct Copies::Group {
  std::vector<std::size_t> which;  ///< of the store's pages
  Servers tried = 0, has = 0;
  unsigned under_way = 0;
  Error last_error{Errc::unavailable, "there is no memory server left"};
};

void Copies::store(Evicted evicted, Stored stored) {
  auto storing = std::make_shared<Storing>();
  storing->evicted = std::move(evicted);
  storing->stored = std::move(stored);
  const Piece& piece = storing->evicted.piece;
  storing->versions.resize(piece.pages.size());
  const Servers living = alive();
  std::map<Servers, std::shared_ptr<Group>> groups;
  std::map<Servers, std::vector<PageNumber>> drops;
  for (std::size_t i = 0; i < piece.pages.size(); ++i) {
    Entry& entry = entries_[piece.pages[i]];
    const bool zero = piece.contents[i] == nullptr;
    const std::uint64_t sum = storing->evicted.sums[i];
    const Servers to = targets(piece.pages[i], living);
    // Clean: acknowledged copies of this very content, and as many as there should be.
    const bool copied = entry.zero || std::popcount<unsigned>(entry.holders & living) >= std::popcount(to);
    if (entry.storing == 0 && copied && (entry.zero ? zero : entry.sum_known && entry.holders != 0 && entry.sum == sum)) {
      ++counts_.pages_clean;
      continue;
    }
    storing->versions[i] = ++entry.version;
    const Servers old = entry.holders;
    entry.sum = sum;
    entry.sum_known = true;
    entry.zero = zero;
    entry.holders = 0;
    if (zero) {
      ++counts_.pages_zero;
      // Also where a store is still under way: it arrives before.
      drops[entry.storing > 0 ? living : old & living].push_back(piece.pages[i]);
      continue;
    }
    ++entry.storing;
    auto& group = groups[to];
    if (!group) group = std::make_shared<Group>();
    group->which.push_back(i);
  }
  for (auto& [from, pages] : drops) drop(from, std::move(pages));
  storing->groups = groups.size();
  if (groups.empty()) return storing->stored({});
  for (auto& [to, group] : groups) send_group(storing, group, to);
}

void Copies::send_group(const std::shared_ptr<Storing>& storing, const std::shared_ptr<Group>& group, Servers to) {
  const Piece& piece = storing->evicted.piece;
  group->tried |= to;
  group->under_way += static_cast<unsigned>(std::popcount(to));
  if (to == 0) {
    ++group->under_way;
    return group_answered(storing, group, servers_.size(), std::unexpected(group->last_error));
  }
  for (std::size_t server = 0; server < servers_.size(); ++server) {
    if ((to & bit(server)) == 0) continue;
    PutBatch batch;
    for (const std::size_t i : group->which) {
      batch.pages.push_back(piece.pages[i]);
      batch.contents.push_back(piece.contents[i]);
    }
    batch.hold = piece.hold;
    counts_.pages_sent += batch.pages.size();
    servers_[server]->put(std::move(batch), [this, storing, group, server](const Status& status) {
      group_answered(storing, group, server, status);
    });
  }
}

void Copies::group_answered(const std::shared_ptr<Storing>& storing, const std::shared_ptr<Group>& group,
                            std::size_t server, const Status& status) {
  --group->under_way;
  if (status)
    group->has |= bit(server);
  else
    group->last_error = status.error();
  if (group->under_way > 0) return;
  const Servers living = alive();
  group->has &= living;
  if (std::popcount(group->has) < static_cast<int>(options_.copies) && group->last_error.code != Errc::canceled) {
    // Another one in the place of who did not take it.
    const PageNumber first = storing->evicted.piece.pages[group->which.front()];
    const Servers others = targets(first, living & static_cast<Servers>(~group->tried));
    if (others != 0) return send_group(storing, group, others);
  }
  std::vector<PageNumber> stale;
  for (const std::size_t i : group->which) {
    const PageNumber page = storing->evicted.piece.pages[i];
    Entry& entry = entries_[page];
    --entry.storing;
    if (entry.version != storing->versions[i]) continue;  // a newer one is under way, or it was zero since
    entry.holders = group->has;
    stale.push_back(page);
  }
  // Who refused may have an older content.
  if (const Servers old = group->tried & living & static_cast<Servers>(~group->has); old != 0 && !stale.empty())
    drop(old, std::move(stale));
  if (group->has == 0) storing->result = std::unexpected(group->last_error);
  if (--storing->groups == 0) storing->stored(storing->result);
}

void Copies::drop(Servers from, std::vector<PageNumber> pages) {
  std::ranges::sort(pages);
  for (std::size_t server = 0; server < servers_.size(); ++server)
    if ((from & bit(server)) != 0)
      servers_[server]->drop(runs_of(pages), [](const Status&) {});  // a copy nobody asks for any more does no harm
}

// ---- a server's death ----------------------------------------------------------------------------------------------

void Copies::server_died(std::size_t server) {
  to_rebuild_.clear();
  for (PageNumber page = 0; page < entries_.size(); ++page) {
    Entry& entry = entries_[page];
    entry.holders &= static_cast<Servers>(~bit(server));
    // Also what an earlier death left.
    const bool short_of = options_.copies > 1 && !entry.zero && std::popcount<unsigned>(entry.holders) == 1;
    const PageNumber region = page / region_pages * region_pages;
    if (short_of && (to_rebuild_.empty() || to_rebuild_.back() != region)) to_rebuild_.push_back(region);
  }
  rebuild_some();
}

/// A region's pages that have one copy are read from there and given to who should have them, too.
void Copies::rebuild_some() {
  while (!to_rebuild_.empty() && rebuilds_under_way_ < most_rebuilds_under_way) {
    const PageNumber region = to_rebuild_.front();
    to_rebuild_.pop_front();
    const PageNumber end = std::min<PageNumber>(region + region_pages, entries_.size());
    std::map<Servers, std::vector<PageNumber>> by_holder;
    for (PageNumber page = region; page < end; ++page) {
      const Entry& entry = entries_[page];
      if (!entry.zero && entry.storing == 0 && std::popcount(entry.holders) == 1) by_holder[entry.holders].push_back(page);
    }
    for (auto& [from, pages] : by_holder) {
      const Servers to = targets(region, alive() & static_cast<Servers>(~from));
      const Servers one = static_cast<Servers>(to & -to);
      if (one == 0) continue;
      for (std::size_t at = 0; at < pages.size(); at += 64) {
        const auto count = std::min<std::size_t>(64, pages.size() - at);
        rebuild({pages.begin() + static_cast<long>(at), pages.begin() + static_cast<long>(at + count)}, from, one);
      }
    }
  }
}

void Copies::rebuild(std::vector<PageNumber> pages, Servers from, Servers to) {
  ++rebuilds_under_way_;
  const auto finished = [this] {
    --rebuilds_under_way_;
    rebuild_some();
  };
  std::vector<std::uint32_t> versions;
  for (const PageNumber page : pages) versions.push_back(entries_[page].version);
  const auto target = static_cast<std::size_t>(std::countr_zero(to));
  auto runs = runs_of(pages);
  servers_[static_cast<std::size_t>(std::countr_zero(from))]->get(
      std::move(runs), [this, pages = std::move(pages), versions = std::move(versions), to, target, finished](auto answer) {
        if (!answer) return finished();
        PutBatch batch;
        std::vector<std::uint32_t> kept;
        const std::byte* data = answer->first.data.data();
        std::size_t i = 0;
        for (const KindRun& run : answer->first.runs)
          for (PageNumber page = run.first; page < run.first + run.pages; ++page, ++i) {
            const std::byte* content = run.kind == PageKind::data ? data : nullptr;
            if (content != nullptr) data += page_bytes;
            // Stored again meanwhile: that is newer, and on its way to both already.
            if (run.kind == PageKind::absent || entries_[page].version != versions[i] ||
                !right(page, content, content == nullptr))
              continue;
            batch.pages.push_back(page);
            batch.contents.push_back(content);
            kept.push_back(versions[i]);
          }
        if (batch.pages.empty()) return finished();
        batch.hold = answer->second.hold;
        const auto copied = batch.pages;
        servers_[target]->put(std::move(batch), [this, copied, kept, to, finished](const Status& status) {
          for (std::size_t k = 0; status && k < copied.size(); ++k) {
            Entry& entry = entries_[copied[k]];
            if (entry.version != kept[k]) continue;
            entry.holders |= to;
            ++counts_.pages_rebuilt;
          }
          finished();
        });
      });
}

/// One that can be written rather than an image: what changed is there.
std::optional<std::size_t> Copies::owner(PageNumber page) const {
  if (entries_[page].zero) return std::nullopt;
  const Servers holders = entries_[page].holders & alive();
  std::optional<std::size_t> found;
  for (std::size_t i = 0; i < servers_.size(); ++i)
    if ((holders & bit(i)) != 0 && (!found || (servers_[i]->writable() && !servers_[*found]->writable()))) found = i;
  return found;
}

std::uint64_t Copies::held_by(std::size_t server) const {
  return static_cast<std::uint64_t>(std::ranges::count_if(entries_, [&](const Entry& entry) { return (entry.holders & bit(server)) != 0; }));
}

std::uint64_t Copies::pages_without_redundancy() const {
  if (options_.copies < 2) return 0;
  return static_cast<std::uint64_t>(std::ranges::count_if(entries_, [](const Entry& entry) {
    return !entry.zero && entry.storing == 0 && std::popcount(entry.holders) == 1;
  }));
}

}  // namespace yado::pager
