// A server's death: what it held is copied again, in the background.

#include <algorithm>
#include <bit>

#include "base/log.hpp"
#include "pager/copies_regions.hpp"
#include "pager/remote_memory.hpp"

namespace yado::pager {
namespace {
/// Guests' own requests go first: they never wait for more than so many.
constexpr unsigned most_rebuilds_under_way = 4;
constexpr std::size_t rebuilt_at_once = 64;
}  // namespace

/// A page whose store is under way is still here, as is a resident one.
bool Copies::can_do_without(std::size_t server) const {
  const auto others = static_cast<Servers>(alive() & ~bit(server));
  return std::ranges::none_of(entries_, [&](const Entry& entry) {
    return (entry.holders & bit(server)) != 0 && (entry.holders & others) == 0 && !entry.zero && !entry.resident && entry.storing == 0;
  });
}

void Copies::server_died(std::size_t server) {
  room_[server] = {};
  for (PageNumber page = 0; page < entries_.size(); ++page) {
    Entry& entry = entries_[page];
    entry.holders &= static_cast<Servers>(~bit(server));
    entry.occupied &= static_cast<Servers>(~bit(server));
    if (short_of_copies(entry)) rebuild_later(page);
  }
  rebuild_some();
}

/// Its only content is remote, and held too few times. What lies on a disk, in an image, does not die with a host.
bool Copies::short_of_copies(const Entry& entry) const {
  if (entry.zero || entry.storing > 0 || entry.resident || entry.holders == 0) return false;
  const Servers images = entry.holders & static_cast<Servers>(~writable());
  if (images != 0 && images_count_) return false;
  return std::popcount(static_cast<Servers>(entry.holders & ~images)) < static_cast<int>(options_.copies);
}

void Copies::make_redundant() {
  for (PageNumber page = 0; page < entries_.size(); ++page)
    if (short_of_copies(entries_[page])) rebuild_later(page);
  rebuild_some();
}

void Copies::leave_images(bool leave) {
  images_count_ = !leave;
  if (leave) make_redundant();
  else rebuild_some();
}

void Copies::when_rebuilt(std::function<void()> then) {
  rebuilt_.push_back(std::move(then));
  rebuild_some();
}

void Copies::rebuild_later(PageNumber page) { to_rebuild_.insert(page / region_pages * region_pages); }

/// There is room now.
void Copies::rebuild_waiting() {
  to_rebuild_.merge(waiting_for_room_);
  rebuild_some();
}

void Copies::rebuild_some() {
  while (!to_rebuild_.empty() && rebuilds_under_way_ < most_rebuilds_under_way) {
    const PageNumber region = *to_rebuild_.begin();
    to_rebuild_.erase(to_rebuild_.begin());
    rebuild_region(region);
  }
  if (settled_) settled_();
  if (rebuilding()) return;
  for (const auto& then : std::exchange(rebuilt_, {})) then();
}

/// A region's pages that have too few copies are read from one and given to who should have them, too.
void Copies::rebuild_region(PageNumber region) {
  const PageNumber end = std::min<PageNumber>(region + region_pages, entries_.size());
  std::map<std::size_t, std::vector<PageNumber>> by_holder;
  for (PageNumber page = region; page < end; ++page) {
    const Entry& entry = entries_[page];
    if (!short_of_copies(entry)) continue;
    const std::size_t from = best_holder(page);
    if (from == servers_.size()) continue;
    if (targets(page, 1, alive() & static_cast<Servers>(~entry.holders)) == 0)
      waiting_for_room_.insert(region);
    else if (by_holder[from].size() < rebuilt_at_once)
      by_holder[from].push_back(page);
    else
      to_rebuild_.insert(region);  // once more, later
  }
  for (auto& [from, pages] : by_holder)
    if (!pages.empty()) rebuild(std::move(pages), from);
}

void Copies::rebuild(std::vector<PageNumber> pages, std::size_t from) {
  ++rebuilds_under_way_;
  std::vector<std::uint32_t> versions;
  for (const PageNumber page : pages) versions.push_back(entries_[page].version);
  auto runs = runs_of(pages);
  servers_[from]->get(std::move(runs), [this, from, versions = std::move(versions)](auto answer) {
    if (answer) copy_on(versions, answer->first, answer->second, from);
    --rebuilds_under_way_;
    rebuild_some();
  });
}

/// What was read of a region: to one more server each.
void Copies::copy_on(const std::vector<std::uint32_t>& versions, const Batch& batch, const Frame& frame, std::size_t from) {
  struct Copy {
    PutBatch batch;
    std::vector<std::uint32_t> versions;
  };
  std::map<std::size_t, Copy> copies;
  const std::byte* data = batch.data.data();
  std::size_t i = 0;
  for (const KindRun& run : batch.runs)
    for (PageNumber page = run.first; page < run.first + run.pages; ++page, ++i) {
      const std::byte* content = run.kind == PageKind::data ? data : nullptr;
      if (content != nullptr) data += page_bytes;
      Entry& entry = entries_[page];
      // Stored again meanwhile, or fetched: nothing is missing, or something newer is on its way.
      if (entry.version != versions[i] || !short_of_copies(entry)) continue;
      if (run.kind == PageKind::absent || !right(page, content)) {
        log::error("pager: {} has lost or changed page {}", servers_[from]->name(), page);
        ++counts_.wrong_contents;
        entry.holders &= static_cast<Servers>(~bit(from));
        drop(bit(from), {page});
        continue;
      }
      const Servers to = occupy(page, 1, alive() & static_cast<Servers>(~entry.holders));
      if (to == 0) {
        waiting_for_room_.insert(page / region_pages * region_pages);
        continue;
      }
      Copy& copy = copies[static_cast<std::size_t>(std::countr_zero(to))];
      copy.batch.pages.push_back(page);
      copy.batch.contents.push_back(content);
      copy.versions.push_back(entry.version);
    }
  for (auto& [to, copy] : copies) {
    ++rebuilds_under_way_;
    copy.batch.hold = frame.hold;
    auto sent = copy.batch.pages;
    servers_[to]->put(std::move(copy.batch), [this, to = to, sent = std::move(sent), versions = std::move(copy.versions)](const Status& status) {
      std::vector<PageNumber> not_taken;
      for (std::size_t k = 0; k < sent.size(); ++k) {
        Entry& entry = entries_[sent[k]];
        if (entry.version != versions[k] || entry.storing > 0) continue;
        if (status) {
          entry.holders |= static_cast<Servers>(bit(to) & alive());
          ++counts_.pages_rebuilt;
          if (short_of_copies(entry)) rebuild_later(sent[k]);  // what it was copied from moved here meanwhile
        } else {
          not_taken.push_back(sent[k]);
        }
      }
      drop(bit(to), not_taken);
      for (const PageNumber page : not_taken) waiting_for_room_.insert(page / region_pages * region_pages);
      --rebuilds_under_way_;
      rebuild_some();
    });
  }
}

/// One that can be written rather than an image: what changed is there.
std::optional<std::size_t> Copies::owner(PageNumber page) const {
  if (entries_[page].zero) return std::nullopt;
  const auto holders = static_cast<Servers>(entries_[page].holders & alive());
  std::optional<std::size_t> found;
  for (std::size_t i = 0; i < servers_.size(); ++i)
    if ((holders & bit(i)) != 0 && (!found || (servers_[i]->writable() && !servers_[*found]->writable()))) found = i;
  return found;
}

std::uint64_t Copies::pages_without_redundancy() const {
  return static_cast<std::uint64_t>(std::ranges::count_if(entries_, [&](const Entry& entry) { return short_of_copies(entry); }));
}

}  // namespace yado::pager
