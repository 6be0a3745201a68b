#include "pager/session.hpp"

#include <sys/random.h>

#include <algorithm>
#include <limits>

#include <fmt/ranges.h>

#include "base/id.hpp"
#include "base/log.hpp"

namespace yado::pager {
namespace {

constexpr std::size_t most_sessions = 1024;  // their page tables are not part of any quota

bool lies_in(const image::PageSet& set, const image::PageRange& range) {
  const auto after = std::ranges::upper_bound(set, range.begin(), {}, &image::PageRange::begin);
  return after != set.begin() && range.end() <= std::prev(after)->end();
}

std::vector<KindRun> runs_of_set(const image::PageSet& set) {
  constexpr std::uint64_t most = std::numeric_limits<std::uint32_t>::max();
  std::vector<KindRun> runs;
  for (const image::PageRange& range : set)
    for (std::uint64_t at = range.begin(); at < range.end(); at += most)
      runs.push_back({at, static_cast<std::uint32_t>(std::min(most, range.end() - at)), PageKind::wanted});
  return runs;
}

}  // namespace

void Session::end() {
  ended_ = true;
  stop_saving({});
  store_.close();
}

// ---- the draft -------------------------------------------------------------------------------------------------------

Result<Saving*> Session::saving(const std::string& name) const {
  if (saving_ && saving_->request().name == name) return saving_.get();
  if (!saving_ && failed_) return fail(failed_->code, "draft {} of session {} is gone: {}", name, name_, failed_->message);
  return fail(Errc::conflict, "there is no draft {} of session {} here{}", name, name_,
              saving_ ? ", but one of " + saving_->request().name : std::string());
}

void Session::forget_saving(const Error& why) {
  std::unique_ptr<Saving> gone;
  const std::lock_guard lock(mutex_);
  gone = std::move(saving_);
  failed_ = why;
}

Result<Saved> Session::save(const SaveRequest& request, const Saving::CanFix& can_fix) {
  Saving* saving = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (ended_) return fail(Errc::canceled, "session {} was ended", name_);
    const bool same = saving_ && saving_->request().name == request.name;
    if (same && saving_->request().cut == request.cut) return saving_->first_round();  // a repetition
    if (saving_) return fail(Errc::conflict, "draft {} was neither kept nor abandoned", saving_->request().name);
    failed_.reset();
    const bool changed_only = !request.base.none() && kept_cut_ == request.base;
    YADO_ASSIGN(saving_, Saving::begin(store_, *archive_, name_, request, changed_only ? PageStore::Scope::changed : PageStore::Scope::all),
                "draft " + request.name);
    saving = saving_.get();
  }
  auto saved = saving->round(can_fix);
  if (!saved) forget_saving(saved.error());
  return saved;
}

Status Session::fix(const std::string& name) {
  const std::lock_guard lock(mutex_);
  YADO_ASSIGN(Saving* const saving, this->saving(name), "FIX");
  return saving->fix();
}

Status Session::own(const FinishRequest& finish) {
  const std::lock_guard lock(mutex_);
  YADO_ASSIGN(Saving* const saving, this->saving(finish.name), "FINISH");
  return saving->own(finish.owned);
}

Result<Saved> Session::finish(const std::string& name) {
  Saving* saving = nullptr;
  {
    const std::lock_guard lock(mutex_);
    YADO_ASSIGN(saving, this->saving(name), "FINISH");
  }
  auto saved = saving->finish();
  if (!saved) forget_saving(saved.error());
  return saved;
}

Result<std::string> Session::keep(const std::string& name) {
  Saving* saving = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (!saving_ && kept_name_ == name && kept_cut_) return kept_sum_;  // a repetition
    YADO_ASSIGN(saving, this->saving(name), "KEEP");
  }
  YADO_ASSIGN(std::string sum, saving->keep(), "draft " + name);
  const std::lock_guard lock(mutex_);
  kept_sum_ = sum;
  kept_cut_ = saving->request().cut;
  kept_name_ = name;
  saving_.reset();
  return sum;
}

void Session::stop_saving(const std::string& name) {
  const std::lock_guard lock(mutex_);
  if (saving_ && (name.empty() || saving_->request().name == name)) saving_->stop();
}

void Session::abandon(const std::string& name) {
  const std::lock_guard lock(mutex_);
  if (saving_ && (name.empty() || saving_->request().name == name)) saving_.reset();
}

// ---- an image --------------------------------------------------------------------------------------------------------

void Session::want(const LoadRequest& request) {
  const std::lock_guard lock(mutex_);
  if (wanted_names_ != request.names) wanted_.clear();
  wanted_names_ = request.names;
  for (const KindRun& run : request.wanted) wanted_.push_back({image::PageNumber{run.first}, run.pages});
}

Result<std::uint64_t> Session::load(const PageStore::Owner& owner, const std::vector<std::string>& names, const std::function<Status(std::uint64_t pages)>& set_quota) {
  if (ended_) return fail(Errc::canceled, "session {} was ended", name_);
  image::PageSet wanted;
  {
    const std::lock_guard lock(mutex_);
    wanted = image::normalised(std::exchange(wanted_, {}));
  }
  YADO_ASSIGN(const auto chain, open_chain(*archive_, name_, names, wanted.empty() ? Pages::all : Pages::chosen), "LOAD");
  {
    const std::lock_guard lock(mutex_);
    if (kept_cut_ && *kept_cut_ != chain->cut())
      return fail(Errc::conflict, "LOAD: changes are counted from the cut {}, the image is of the cut {}", kept_cut_->hex(),
                  chain->cut().hex());
  }
  const image::PageSet here = chain->here();
  if (wanted.empty()) wanted = here;
  // Pages that no index knows. (One whose log is elsewhere, or beyond the memory, PageStore refuses.)
  for (const image::PageRange& range : wanted) {
    if (lies_in(here, range)) continue;
    for (std::uint64_t page = range.begin(); page < std::min(range.end(), chain->guest_pages()); ++page)
      if (!chain->has(image::PageNumber{page})) return fail(Errc::not_found, "LOAD: page {} is not in {}", page, fmt::join(names, ", "));
  }
  const std::vector<KindRun> runs = runs_of_set(wanted);
  YADO_ASSIGN(const std::uint64_t quota, store_.quota_to_load(*chain, runs), "LOAD");
  if (set_quota && quota > store_.quota_pages()) YADO_TRY(set_quota(quota), "LOAD");
  YADO_ASSIGN(const std::uint64_t pages, store_.load(owner, chain, runs), "LOAD");
  chain_ = store_.chain();
  for (const image::PagePart* part : chain_->parts())
    if (part->has_log()) sources_.push_back({part, wanted, std::nullopt});
  const std::lock_guard lock(mutex_);
  kept_cut_ = chain_->cut();
  return pages;
}

/// Listed when it is its turn: not while somebody waits for the answer to LOAD.
std::size_t Session::Source::left(const image::PageChain& chain) {
  if (!pages) {
    pages = chain.live(*part);
    std::erase_if(*pages, [&](const image::PlacedPage& page) { return page.record.zero() || !image::contains(wanted, page.page); });
  }
  return pages->size() - next;
}

bool Session::bring_in(std::size_t most) {
  while (!sources_.empty() && sources_.back().left(*chain_) == 0) sources_.pop_back();
  if (ended_ || sources_.empty()) return false;
  Source& source = sources_.back();
  const std::size_t count = std::min(most, source.left(*chain_));
  const std::span some(source.pages->data() + source.next, count);
  source.next += count;
  const auto install = [&](image::PageNumber page, std::optional<image::PageContents> content) -> Status {
    if (content) store_.fetch_from_disk(*chain_, image::value_of(page), *content);
    return {};
  };
  if (source.part->scan(some, install)) return true;
  std::array<std::byte, page_bytes> content;
  for (const image::PlacedPage& page : some) {
    if (auto read = source.part->read(page, content))
      (void)install(page.page, content);
    else
      log::error("memory server: session {}: {}", name_, read.error().text());
  }
  return true;
}

// ---- all of them -----------------------------------------------------------------------------------------------------

namespace {

/// Its quota is what was granted last, perhaps by a QUOTA whose answer was lost.
Status same_size(const Session& session, const Hello& hello) {
  const std::uint64_t pages = session.store().pages();
  if (pages == hello.pages) return {};
  return fail(Errc::conflict, "session {} has {} pages, not {}", hello.session, pages, hello.pages);
}

}  // namespace

Result<Sessions::Opened> Sessions::open(const Hello& hello, const std::string& peer) {
  if (!valid_name(hello.session)) return fail(Errc::invalid_argument, "\"{}\" is no name of a session", hello.session);
  const std::lock_guard lock(mutex_);
  Opened opened;
  if (const auto found = sessions_.find(hello.session); found != sessions_.end()) {
    const PageStore::Owner now = found->second->store().owner();
    const bool another_life = std::pair(hello.epoch, life_of(hello.generation)) > std::pair(now.epoch, life_of(now.generation));
    if (hello.role == Role::heir) {
      YADO_TRY(same_size(*found->second, hello), "session");
      // In one step: of two heirs of the same owner one comes too late.
      YADO_ASSIGN(const PageStore::Owner before, found->second->store().take_over({hello.epoch, hello.generation}, hello.from), "session " + hello.session);
      found->second->belongs_to(peer);
      opened.session = found->second;
      if (before.epoch != hello.epoch) opened.abandoned = found->second;
      return opened;
    }
    if (hello.role != Role::owner || !another_life) {
      YADO_ASSIGN(opened.session, join(found->second, hello, peer), "session");
      return opened;
    }
    // Of the workload, perhaps on another host: what the one before kept here is of no use to it.
    found->second->end();
    opened.abandoned = found->second;
    sessions_.erase(found);
  }
  if (hello.role != Role::owner) return fail(Errc::not_found, "there is no session {}", hello.session);
  if (sessions_.size() >= most_sessions) return fail(Errc::no_space, "there are {} sessions already", most_sessions);
  if (const std::uint64_t free = arena_.capacity_pages() - set_aside(); hello.quota_pages > free)
    return fail(Errc::no_space, "{} pages are asked for, {} of {} are free", hello.quota_pages, free, arena_.capacity_pages());
  std::uint64_t instance = 0;
  if (::getrandom(&instance, sizeof instance, 0) != sizeof instance) return fail_errno("getrandom");
  opened.session = std::make_shared<Session>(hello.session, peer, instance, arena_, hello, archive_, new_line_());
  sessions_.emplace(hello.session, opened.session);
  return opened;
}

Result<std::shared_ptr<Session>> Sessions::join(const std::shared_ptr<Session>& session, const Hello& hello,
                                                const std::string& peer) const {
  if (hello.role == Role::mover) {
    // Only the session's owner can have told it.
    if (hello.generation != session->instance() || hello.epoch != session->store().owner().epoch)
      return fail(Errc::permission, "{} may not move pages into session {}", peer, hello.session);
    return session;
  }
  if (hello.role == Role::reader) {
    if (hello.generation != session->instance()) return fail(Errc::permission, "{} may not read session {}: it was told of another one", peer, hello.session);
    if (const std::uint64_t epoch = session->store().owner().epoch; epoch != hello.from)
      return fail(Errc::stale_epoch, "session {} is epoch {}'s, and not any more what epoch {} has left", hello.session, epoch, hello.from);
    return session;
  }
  // Whoever was granted more since, perhaps by a gate: a still later grant would have it.
  if (const std::uint64_t epoch = session->store().owner().epoch; hello.role == Role::owner && hello.epoch < epoch)
    return fail(Errc::stale_epoch, "session {} is of epoch {}, {}'s: {} comes with {}", hello.session, epoch, session->owner(), peer, hello.epoch);
  if (hello.role != Role::looker && session->owner() != peer)
    return fail(Errc::permission, "session {} belongs to {}, not to {}", hello.session, session->owner(), peer);
  if (hello.role == Role::owner) YADO_TRY(same_size(*session, hello), "session");
  return session;
}

std::uint64_t Sessions::set_aside() const {
  std::uint64_t pages = 0;
  for (const auto& [name, session] : sessions_) pages += session->store().quota_pages();
  return pages;
}

Status Sessions::set_quota(Session& session, const PageStore::Owner& owner, std::uint64_t pages) {
  const std::lock_guard lock(mutex_);
  const std::uint64_t now = session.store().quota_pages(), free = arena_.capacity_pages() - set_aside();
  if (pages > now && pages - now > free)
    return fail(Errc::no_space, "{} pages more are asked for, {} of {} are free", pages - now, free, arena_.capacity_pages());
  return session.store().set_quota(owner, pages);
}

Status Sessions::end(const std::string& name) {
  const std::lock_guard lock(mutex_);
  const auto found = sessions_.find(name);
  if (found == sessions_.end()) return fail(Errc::not_found, "there is no session {}", name);
  found->second->end();
  sessions_.erase(found);
  return {};
}

void Sessions::end_all() {
  const std::lock_guard lock(mutex_);
  for (const auto& [name, session] : sessions_) session->end();
}

std::vector<std::shared_ptr<Session>> Sessions::all() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::shared_ptr<Session>> sessions;
  for (const auto& [name, session] : sessions_) sessions.push_back(session);
  return sessions;
}

}  // namespace yado::pager
