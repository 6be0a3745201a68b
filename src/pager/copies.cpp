#include <algorithm>
#include <bit>

#include "base/check.hpp"
#include "base/log.hpp"
#include "pager/copies_regions.hpp"
#include "pager/remote_memory.hpp"

namespace yado::pager {

Status RemoteMemory::none_lost(const PageBits& here) const {
  std::uint64_t gone = 0;
  PageNumber first = 0;
  for (PageNumber page = here.size(); page-- > 0;)
    if (!here.test(page) && lost(page)) ++gone, first = page;
  if (gone == 0) return {};
  if (gone == 1) return fail(Errc::unavailable, "page {} is lost: no server has it any more", first);
  return fail(Errc::unavailable, "page {} and {} more are lost: no server has them any more", first, gone - 1);
}

Copies::Copies(const Options& options, std::vector<PageServer*> servers)
    : options_(options), servers_(std::move(servers)), room_(servers_.size()), entries_(options.pages) {
  YADO_CHECK(options.copies == 1 || options.copies == 2, "{} copies", options.copies);
  YADO_CHECK(servers_.size() <= most_servers, "{} servers", servers_.size());
}

void Copies::adopt(std::span<const KindRun> runs, std::size_t server) {
  for (const KindRun& run : runs)
    for (PageNumber page = run.first; page < run.first + run.pages && page < entries_.size(); ++page) {
      Entry& entry = entries_[page];
      entry.zero = run.kind == PageKind::zero;
      entry.holders |= bit(server);
      if (!entry.zero && servers_[server]->writable()) set_occupied(entry, entry.occupied | bit(server));
    }
}

Result<std::size_t> Copies::add_server(PageServer* server, PageServer*) {
  for (std::size_t i = 0; i < servers_.size(); ++i) {
    if (servers_[i]->alive()) continue;
    server_died(i);  // also what a drained one may still seem to have
    servers_[i] = server;
    rebuild_waiting();
    return i;
  }
  if (servers_.size() == most_servers) return fail(Errc::no_space, "a memory lies on at most {} servers at a time, an image on this host included", most_servers);
  servers_.push_back(server);
  room_.emplace_back();
  rebuild_waiting();
  return servers_.size() - 1;
}

Copies::Servers Copies::alive() const {
  Servers servers = 0;
  for (std::size_t i = 0; i < servers_.size(); ++i)
    if (servers_[i]->alive()) servers |= bit(i);
  return servers;
}

Copies::Servers Copies::writable() const {
  Servers servers = 0;
  for (std::size_t i = 0; i < servers_.size(); ++i)
    if (servers_[i]->writable()) servers |= bit(i);
  return servers;
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
  if (!others.empty()) fetch_from_servers(fetching, others);
  if (zeroes.pages.empty() || fetching->failed) return;
  zeroes.contents.resize(zeroes.pages.size(), nullptr);
  fetching->arrived(std::move(zeroes));
}

/// One that answers now rather than one that is being connected again, memory rather than a disk. servers_.size(): nobody.
std::size_t Copies::best_holder(PageNumber page) const {
  const Servers holders = entries_[page].holders & alive();
  const auto worth = [&](std::size_t server) { return 2 * servers_[server]->connected() + servers_[server]->writable(); };
  std::size_t best = servers_.size();
  for (std::size_t i = 0; i < servers_.size(); ++i) {
    const std::size_t at = (page / region_pages + i) % servers_.size();
    if ((holders & bit(at)) != 0 && (best == servers_.size() || worth(at) > worth(best))) best = at;
  }
  return best;
}

void Copies::fetch_from_servers(const std::shared_ptr<Fetching>& fetching, const std::vector<PageNumber>& pages) {
  std::map<std::size_t, std::vector<PageNumber>> by_server;
  for (const PageNumber page : pages) {
    const std::size_t server = best_holder(page);
    if (server == servers_.size()) {
      if (std::exchange(fetching->failed, true)) return;
      return fetching->arrived(fail(Errc::unavailable, "page {} is lost: no server has it any more", page));
    }
    by_server[server].push_back(page);
  }
  for (auto& [server, its] : by_server) {
    auto runs = runs_of(its);
    servers_[server]->get(std::move(runs), [this, fetching, server = server, its = std::move(its)](auto answer) {
      if (!fetching->failed) got(fetching, server, its, std::move(answer));
    });
  }
}

/// As it was given away. What nobody here has seen yet is as its server says it is.
bool Copies::right(PageNumber page, const std::byte* content) {
  static const std::array<std::byte, page_bytes> zeroes{};
  Entry& entry = entries_[page];
  const std::uint64_t sum = sum_of(content == nullptr ? PageData(zeroes) : PageData(content, page_bytes), options_.seed);
  if (entry.sum_known) return sum == entry.sum;
  entry.sum = sum;
  entry.sum_known = true;
  return true;
}

void Copies::got(const std::shared_ptr<Fetching>& fetching, std::size_t server, const std::vector<PageNumber>& pages,
                 Result<std::pair<Batch, Frame>> answer) {
  if (!answer) return refused(fetching, server, pages, answer.error());
  Piece piece;
  std::vector<PageNumber> wrong;
  const std::byte* data = answer->first.data.data();
  for (const KindRun& run : answer->first.runs)
    for (PageNumber page = run.first; page < run.first + run.pages; ++page) {
      const std::byte* content = run.kind == PageKind::data ? data : nullptr;
      if (content != nullptr) data += page_bytes;
      if (run.kind == PageKind::absent || !right(page, content)) {
        wrong.push_back(page);
        continue;
      }
      piece.pages.push_back(page);
      piece.contents.push_back(content);
      if (entries_[page].storing == 0) set_resident(entries_[page], true);
    }
  piece.hold = answer->second.hold;
  if (!piece.pages.empty()) fetching->arrived(std::move(piece));
  if (settled_) settled_();
  if (wrong.empty()) return;
  counts_.wrong_contents += wrong.size();
  log::error("pager: {} gave {} pages, from page {} on, that are not what it was given", servers_[server]->name(),
             wrong.size(), wrong.front());
  for (const PageNumber page : wrong) entries_[page].holders &= static_cast<Servers>(~bit(server));
  drop(bit(server), wrong);
  fetch_from_servers(fetching, wrong);
}

/// A living server refuses perhaps for the sake of one page only: the others are asked for apart. A page that is
/// refused by itself has no copy there.
void Copies::refused(const std::shared_ptr<Fetching>& fetching, std::size_t server, const std::vector<PageNumber>& pages,
                     const Error& error) {
  if (error.code == Errc::canceled) return;
  if (!servers_[server]->alive()) return fetch_from_servers(fetching, pages);
  if (pages.size() > 1) {
    const auto middle = pages.begin() + static_cast<long>(pages.size() / 2);
    fetch_from_servers(fetching, {pages.begin(), middle});
    return fetch_from_servers(fetching, {middle, pages.end()});
  }
  log::warn("pager: {} does not give page {}: {}", servers_[server]->name(), pages.front(), error.text());
  entries_[pages.front()].holders &= static_cast<Servers>(~bit(server));
  fetch_from_servers(fetching, pages);
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
  Error last_error{Errc::no_space, "no memory server has room left"};
};

/// Acknowledged copies of this very content, and as many as there should be.
bool Copies::clean(const Entry& entry, bool zero, std::uint64_t sum) const {
  if (entry.storing > 0) return false;
  if (entry.zero || zero) return entry.zero && zero;
  return entry.holders != 0 && entry.sum_known && entry.sum == sum && !short_of_copies(entry);
}

void Copies::store(Evicted evicted, Stored stored) {
  auto storing = std::make_shared<Storing>();
  storing->evicted = std::move(evicted);
  storing->stored = std::move(stored);
  const Piece& piece = storing->evicted.piece;
  YADO_CHECK(piece.pages.size() <= most_data_pages, "a store of {} pages", piece.pages.size());
  storing->versions.resize(piece.pages.size());
  for (const PageNumber page : piece.pages) set_resident(entries_[page], false);
  Groups groups;
  std::map<Servers, std::vector<PageNumber>> drops;
  for (std::size_t i = 0; i < piece.pages.size(); ++i) {
    Entry& entry = entries_[piece.pages[i]];
    storing->versions[i] = ++entry.version;
    const bool zero = piece.contents[i] == nullptr;
    if (clean(entry, zero, storing->evicted.sums[i])) {
      ++counts_.pages_clean;
      continue;
    }
    entry.sum = storing->evicted.sums[i];
    entry.sum_known = true;
    entry.zero = zero;
    entry.holders = 0;
    if (zero) {
      ++counts_.pages_zero;
      drops[entry.occupied].push_back(piece.pages[i]);  // behind a store of it that may be under way
      continue;
    }
    ++entry.storing;
    plan(storing, i, 0, 0, groups);
  }
  for (auto& [from, pages] : drops) drop(from, std::move(pages));
  ++storing->groups;  // this function's own
  send_groups(storing, groups);
  finished(storing);
}

/// Puts a page into the group of those servers that shall get it, besides those that `has` it.
void Copies::plan(const std::shared_ptr<Storing>& storing, std::size_t which, Servers tried, Servers has, Groups& groups) {
  const unsigned missing = options_.copies - static_cast<unsigned>(std::popcount(has));
  const Servers to = occupy(storing->evicted.piece.pages[which], missing, alive() & static_cast<Servers>(~tried), storing->evicted.to);
  const std::vector<bool>& unchanged = storing->evicted.unchanged;
  auto& group = groups[{to, !unchanged.empty() && unchanged[which]}];
  if (!group) group = std::make_shared<Group>();
  group->which.push_back(which);
  group->tried = tried | to;
  group->has = has;
}

void Copies::send_groups(const std::shared_ptr<Storing>& storing, Groups& groups) {
  storing->groups += groups.size();
  for (const auto& [to, group] : groups) send_group(storing, to.first, to.second, group);
}

void Copies::send_group(const std::shared_ptr<Storing>& storing, Servers to, bool unchanged, const std::shared_ptr<Group>& group) {
  const Piece& piece = storing->evicted.piece;
  if (to == 0) {
    for (const std::size_t which : group->which) settle(storing, which, group->has);
    if (group->has == 0) storing->result = std::unexpected(group->last_error);
    return finished(storing);
  }
  group->under_way = static_cast<unsigned>(std::popcount(to));
  for (std::size_t server = 0; server < servers_.size(); ++server) {
    if ((to & bit(server)) == 0) continue;
    PutBatch batch;
    for (const std::size_t i : group->which) {
      batch.pages.push_back(piece.pages[i]);
      batch.contents.push_back(piece.contents[i]);
    }
    batch.hold = piece.hold;
    batch.unchanged = unchanged;
    counts_.pages_sent += batch.pages.size();
    servers_[server]->put(std::move(batch), [this, storing, group, server](const Status& status) {
      group_answered(storing, group, server, status);
    });
  }
}

void Copies::group_answered(const std::shared_ptr<Storing>& storing, const std::shared_ptr<Group>& group,
                            std::size_t server, const Status& status) {
  if (status)
    group->has |= bit(server);
  else
    group->last_error = status.error();
  if (--group->under_way > 0) return;
  group->has &= alive();
  if (std::popcount(group->has) >= static_cast<int>(options_.copies) || group->last_error.code == Errc::canceled) {
    for (const std::size_t which : group->which) settle(storing, which, group->has);
    if (group->has == 0) storing->result = std::unexpected(group->last_error);
    return finished(storing);
  }
  // Others in the place of who did not take it; but an old content must not overtake a newer one there.
  Groups again;
  for (const std::size_t which : group->which)
    if (entries_[storing->evicted.piece.pages[which]].version == storing->versions[which])
      plan(storing, which, group->tried, group->has, again);
    else
      settle(storing, which, 0);
  for (auto& [to, next] : again) next->last_error = group->last_error;
  send_groups(storing, again);
  finished(storing);
}

/// The store of one page is over.
void Copies::settle(const std::shared_ptr<Storing>& storing, std::size_t which, Servers has) {
  const PageNumber page = storing->evicted.piece.pages[which];
  Entry& entry = entries_[page];
  --entry.storing;
  if (entry.version == storing->versions[which]) entry.holders = has & alive();
  if (entry.storing > 0) return;
  // Old contents: who refused the new one, or is no target any more.
  if (const Servers stale = entry.occupied & static_cast<Servers>(~entry.holders); stale != 0) drop(stale, {page});
  if (short_of_copies(entry)) rebuild_later(page);
}

/// One of the groups.
void Copies::finished(const std::shared_ptr<Storing>& storing) {
  if (--storing->groups > 0) return;
  // After a failure all of its pages stay in the memory file, but for those that a later store took.
  for (std::size_t i = 0; !storing->result && i < storing->versions.size(); ++i)
    if (Entry& entry = entries_[storing->evicted.piece.pages[i]]; entry.version == storing->versions[i]) set_resident(entry, true);
  storing->stored(storing->result);
  rebuild_some();
}

void Copies::kept(std::span<const PageNumber> pages) {
  for (const PageNumber page : pages)
    if (entries_[page].storing == 0) set_resident(entries_[page], true);
  if (settled_) settled_();
}

}  // namespace yado::pager
