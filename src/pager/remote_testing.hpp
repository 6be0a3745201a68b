#pragma once
// For tests of RemoteMemory: servers that are a few lines each (answers late, out of step with each other, servers dying, lying,
// full), and a simulation of a pager over them.

#include <algorithm>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <set>

#include "pager/pager_testing.hpp"
#include "pager/remote_memory.hpp"

namespace yado::pager {

inline constexpr std::uint64_t seed_of_sums = 42;

/// Carries out its requests in their order when it is told to, and answers when it is told to.
class FakeServer : public PageServer {
 public:
  FakeServer(std::string name, std::uint64_t quota) : name_(std::move(name)), quota_(quota) {}

  void get(std::vector<PageRun> pages, Got got) override {
    auto answer = std::make_shared<Result<std::pair<Batch, Frame>>>(fail(Errc::internal, ""));
    add([this, pages = std::move(pages), answer] { *answer = look_up(pages); },
        [got, answer](const Error* error) { got(error != nullptr ? std::unexpected(*error) : std::move(*answer)); });
  }
  void put(PutBatch batch, Done done) override {
    for (const PageNumber page : batch.pages) ++unacknowledged[page];
    auto status = std::make_shared<Status>();
    auto pages = batch.pages;
    add([this, batch = std::move(batch), status] { *status = store(batch); },
        [this, done, status, pages = std::move(pages)](const Error* error) {
          for (const PageNumber page : pages) --unacknowledged[page];
          done(error != nullptr ? Status(std::unexpected(*error)) : *status);
        });
  }
  void drop(std::vector<PageRun> pages, Done done) override {
    EXPECT_FALSE(pages.empty());
    add([this, pages = std::move(pages)] {
          for (const PageRun& run : pages)
            for (PageNumber page = run.first; page < run.first + run.pages; ++page) held.erase(page);
        },
        [done](const Error* error) { done(error != nullptr ? Status(std::unexpected(*error)) : Status{}); });
  }
  /// END: forgets all its pages; behind everything that was asked before.
  void end(std::function<void()> done) {
    add([this] { held.clear(); }, [done = std::move(done)](const Error*) { done(); });
  }
  /// What a mover brings: pages that are held stay as they are.
  Status add_page(PageNumber page, std::uint64_t number) {
    if (held.contains(page)) return {};
    if (number != 0 && data_pages() == quota_) return fail(Errc::no_space, "{} pages", quota_);
    held.emplace(page, number);
    return {};
  }
  bool alive() const override { return alive_; }
  bool connected() const override { return connected_now; }
  bool writable() const override { return takes_pages; }
  std::uint64_t quota_pages() const override { return quota_; }
  const std::string& name() const override { return name_; }
  void distrust(const Error&) override {}

  bool busy() const { return !under_way_.empty(); }
  /// Carries out a request, or answers one. False: there is nothing to do.
  bool step(bool rather_answer) {
    if (under_way_.empty()) return false;
    const bool answer = carried_out_ > 0 && (rather_answer || carried_out_ == under_way_.size());
    if (!answer) {
      under_way_[carried_out_++].carry_out();
      return true;
    }
    const Request request = std::move(under_way_.front());
    under_way_.pop_front();
    --carried_out_;
    const Error dead{Errc::unavailable, "it is dead"};
    request.answer(alive_ ? nullptr : &dead);
    return true;
  }
  /// As a link does it: first its pager hears of it, then its requests fail, also those that were carried out.
  void die(const std::function<void()>& tell) {
    alive_ = false;
    held.clear();
    tell();
    const Error dead{Errc::refused, "it died"};
    carried_out_ = 0;
    for (const Request& request : std::exchange(under_way_, {})) request.answer(&dead);
  }
  std::uint64_t data_pages() const {
    return static_cast<std::uint64_t>(std::ranges::count_if(held, [](const auto& page) { return page.second != 0; }));
  }

  Contents held;
  std::map<PageNumber, int> unacknowledged;
  std::function<bool(const std::vector<PageRun>&)> refuses;  ///< a GET
  bool connected_now = true, takes_pages = true;
  std::uint64_t puts = 0;
  std::set<PageNumber> unchanged;  ///< said to be, when it was put last

 private:
  struct Request {
    std::function<void()> carry_out;
    std::function<void(const Error*)> answer;
  };
  void add(std::function<void()> carry_out, std::function<void(const Error*)> answer) {
    if (!alive_) carry_out = [] {};
    under_way_.push_back({std::move(carry_out), std::move(answer)});
  }
  Result<std::pair<Batch, Frame>> look_up(const std::vector<PageRun>& pages) const {
    if (refuses && refuses(pages)) return fail(Errc::io, "a bad disk");
    Batch batch;
    auto space = std::make_shared<std::vector<std::byte>>();
    for (const PageRun& run : pages)
      for (PageNumber page = run.first; page < run.first + run.pages; ++page) {
        const auto found = held.find(page);
        append(batch.runs, page, found == held.end() ? PageKind::absent : found->second == 0 ? PageKind::zero : PageKind::data);
        if (found == held.end() || found->second == 0) continue;
        const auto other = others_.find(found->second);
        const Page content = other == others_.end() ? page_with(found->second) : other->second;
        space->insert(space->end(), content.begin(), content.end());
      }
    batch.data = *space;
    return std::pair(batch, Frame{{}, {}, std::shared_ptr<const std::byte[]>(space, space->data())});
  }
  Status store(const PutBatch& batch) {
    ++puts;
    Contents after = held;
    for (std::size_t i = 0; i < batch.pages.size(); ++i)
      after[batch.pages[i]] = number_of(batch.contents[i]);
    const auto used = static_cast<std::uint64_t>(std::ranges::count_if(after, [](const auto& page) { return page.second != 0; }));
    if (used > quota_) return fail(Errc::no_space, "{} pages of {}", used, quota_);
    held = std::move(after);
    for (const PageNumber page : batch.pages)
      if (batch.unchanged) unchanged.insert(page); else unchanged.erase(page);
    return {};
  }

  /// As for page_with. What no page_with is (a parity) gets a number of its own.
  std::uint64_t number_of(const std::byte* content) {
    const std::uint64_t number = number_in(content);
    const Page page = page_with(number);
    if (std::memcmp(page.data(), content, page_bytes) == 0) return number;
    const std::uint64_t own = sum_of(PageData(content, page_bytes), 77);
    std::memcpy(others_[own].data(), content, page_bytes);
    return own;
  }

  std::string name_;
  std::map<std::uint64_t, Page> others_;
  std::uint64_t quota_;
  bool alive_ = true;
  std::deque<Request> under_way_;
  std::size_t carried_out_ = 0;
};

inline Evicted evicted(const Contents& contents) {
  auto pages = std::make_shared<std::vector<Page>>();
  pages->reserve(contents.size());
  Evicted out;
  for (const auto& [page, number] : contents) {
    pages->push_back(page_with(number));
    out.piece.pages.push_back(page);
    out.piece.contents.push_back(number == 0 ? nullptr : pages->back().data());
    out.sums.push_back(sum_of(pages->back(), seed_of_sums));
  }
  out.piece.hold = pages;
  return out;
}

inline Contents contents_of_piece(const Piece& piece) {
  Contents out;
  for (std::size_t i = 0; i < piece.pages.size(); ++i)
    out[piece.pages[i]] = piece.contents[i] == nullptr
                              ? 0
                              : contents_of({{piece.pages[i], 1, PageKind::data}}, Bytes(piece.contents[i], page_bytes)).begin()->second;
  return out;
}

/// A RemoteMemory over servers, one thing at a time.
class RemoteFixture : public ::testing::Test {
 protected:
  virtual RemoteMemory& tested() = 0;
  virtual std::vector<std::unique_ptr<FakeServer>>& tested_servers() = 0;
  /// Something that goes on beside the servers' requests; false: there is nothing to do.
  virtual bool step_beside() { return false; }

  void settle() {
    bool any = true;
    while (std::exchange(any, false)) {
      for (auto& server : tested_servers()) any = server->step(true) || any;
      any = step_beside() || any;
    }
  }
  Status store(const Contents& contents) {
    std::optional<Status> done;
    tested().store(evicted(contents), [&](const Status& status) { done = status; });
    settle();
    return done.value_or(fail(Errc::internal, "never answered"));
  }
  Result<Contents> fetch(std::vector<PageNumber> pages) {
    Contents out;
    std::optional<Error> failed;
    tested().fetch(pages, [&](const Result<Piece>& piece) {
      if (!piece) return void(failed = piece.error());
      out.merge(contents_of_piece(*piece));
    });
    settle();
    if (failed) return std::unexpected(*failed);
    EXPECT_EQ(out.size(), pages.size());
    return out;
  }
};

/// A RemoteMemory and its hosts, as the simulation needs them.
class TestedHosts {
 public:
  virtual ~TestedHosts() = default;
  virtual RemoteMemory& remote() = 0;
  virtual void kill(std::size_t host) = 0;
  virtual std::size_t any_alive(std::size_t random) const = 0;
  /// After all requests were answered.
  virtual void check_at_rest() = 0;
  /// As many hosts are left, with as much room, as it takes for full redundancy and one death more.
  virtual bool can_lose_another() const = 0;
  /// Nobody can blame it for the loss of a page with this content.
  virtual bool may_be_lost(PageNumber page, std::uint64_t content) const = 0;
  /// Something that goes on beside the servers' requests; false: there is nothing to do.
  virtual bool step(unsigned /*random*/) { return false; }
  /// Other servers, now and then.
  virtual void change(unsigned /*random*/) {}
  /// What every page contains at the start; what is not named is zero.
  virtual Contents loaded() { return {}; }
  /// The simulated pager's: as Drain::Ways::bring.
  std::function<std::size_t(const std::vector<PageNumber>&)> bring;
  /// What its pages that are not in its memory contain.
  std::function<Contents()> remote_contents;

  std::vector<std::unique_ptr<FakeServer>> servers;
};

/// A pager of few pages over few servers, all of whose choices come from a seed. It knows what every page must contain.
class Simulation {
 public:
  struct Plan {
    unsigned seed = 0, deaths = 0;
    unsigned used_pages = 260;  ///< of `pages`, spread evenly
    unsigned zeros_of_100 = 12; ///< of what is written
    unsigned give_ups = 0;      ///< deaths of hosts that it said it can do without
    unsigned changes = 0;       ///< of the servers
    unsigned harm_of_1000 = 0;  ///< how often a held page is changed under its server
  };
  static constexpr PageNumber pages = 1300;  // three regions
  static constexpr std::size_t local_limit = 60, kept_local = 30, most_evicted = 8;
  std::size_t brought_limit = local_limit;  ///< of pages here, for what a drain brings

  Simulation(const Plan& plan, std::unique_ptr<TestedHosts> hosts)
      : plan_(plan), random_(plan.seed), hosts_(std::move(hosts)), servers_(hosts_->servers), remote_(&hosts_->remote()) {
    contents_ = hosts_->loaded();
    for (const auto& [page, number] : contents_) last_number_ = std::max(last_number_, number);
    hosts_->bring = [this](const std::vector<PageNumber>& wanted) { return bring(wanted); };
    hosts_->remote_contents = [this] {
      Contents all;
      for (PageNumber page = 0; page < pages; ++page)
        if (!local_.contains(page)) all[page] = content(page);
      return all;
    };
  }

  /// False: a page was lost, and rightly so.
  bool run() {
    for (int step = 0; step < 6000 && !lost_ && !::testing::Test::HasFailure(); ++step) {
      const auto dice = random_() % 100;
      if (dice < 55)
        step_a_server();
      else if (dice < 75)
        touch();
      else if (dice < 97)
        evict();
      else if (random_() % 1000 < plan_.harm_of_1000)
        harm();
      else if (plan_.deaths > 0 && random_() % 150 == 0)
        kill();
      else if (plan_.give_ups > 0 && random_() % 4 == 0)
        give_up();
      else if (plan_.changes > 0 && random_() % 15 == 0)
        --plan_.changes, hosts_->change(static_cast<unsigned>(random_()));
      for (auto& server : servers_) {
        EXPECT_LE(server->data_pages(), server->quota_pages());
        if (random_() % 50 == 0) server->connected_now = !server->connected_now;
      }
    }
    return !lost_;
  }

  /// No more faults: everything comes to rest as it should be.
  void check_at_rest() {
    while (step_a_server()) {}
    hosts_->check_at_rest();
    if (hosts_->can_lose_another() && plan_.harm_of_1000 == 0 && !lost_) {
      EXPECT_EQ(remote_->pages_without_redundancy(), 0u);
      hosts_->kill(hosts_->any_alive(random_()));
    }
    for (PageNumber page = 0; page < pages && !lost_; ++page)
      if (!local_.contains(page) && !fetching_.contains(page)) fetch(page);
    while (!lost_ && step_a_server()) {}
    EXPECT_TRUE(lost_ || fetching_.empty());
  }
  std::uint64_t failed_stores() const { return failed_stores_; }
  unsigned give_ups_left() const { return plan_.give_ups; }
  TestedHosts& hosts() { return *hosts_; }

 private:
  std::uint64_t content(PageNumber page) const {
    const auto found = contents_.find(page);
    return found == contents_.end() ? 0 : found->second;
  }
  bool step_a_server() {
    if (random_() % 4 == 0 && hosts_->step(static_cast<unsigned>(random_()))) return true;
    const std::size_t first = random_() % servers_.size();
    for (std::size_t i = 0; i < servers_.size(); ++i)
      if (servers_[(first + i) % servers_.size()]->step(random_() % 2 == 0)) return true;
    return hosts_->step(static_cast<unsigned>(random_()));
  }
  /// The guest reads or writes a page.
  void touch() {
    const PageNumber page = random_() % plan_.used_pages * (pages / plan_.used_pages);
    if (!local_.contains(page)) {
      if (local_.size() + fetching_.size() < local_limit && !fetching_.contains(page)) fetch(page);
      return;
    }
    write(page);
    if (const auto storing = storing_.find(page); storing != storing_.end()) storing_.erase(storing);  // undone
  }
  void write(PageNumber page) {
    if (random_() % 2 == 0) contents_[page] = random_() % 100 < plan_.zeros_of_100 ? 0 : ++last_number_;
  }
  void fetch(PageNumber page) {
    fetching_.insert(page);
    remote_->fetch({page}, [this, page](const Result<Piece>& piece) {
      fetching_.erase(page);
      if (!piece) {
        lost_ = true;
        EXPECT_TRUE(harmed_.contains(page) || hosts_->may_be_lost(page, content(page))) << "page " << page << " is there: " << piece.error().text();
        return;
      }
      EXPECT_EQ(contents_of_piece(*piece), (Contents{{page, content(page)}})) << "seed " << plan_.seed;
      local_.insert(page);
      write(page);
    });
  }
  std::size_t bring(const std::vector<PageNumber>& wanted) {
    std::size_t seen = 0;
    std::vector<PageNumber> here;
    for (; seen < wanted.size(); ++seen) {
      const PageNumber page = wanted[seen];
      if (local_.contains(page) && !storing_.contains(page)) here.push_back(page);
      if (local_.contains(page) || fetching_.contains(page)) continue;
      if (local_.size() + fetching_.size() >= brought_limit) break;
      fetch(page);
    }
    if (!here.empty()) remote_->kept(here);
    return seen;
  }
  void evict() {
    if (local_.size() < under_way_ + kept_local) return;
    Contents batch;
    const std::size_t most = 1 + random_() % most_evicted;
    auto at = local_.lower_bound(random_() % pages);
    for (; at != local_.end() && batch.size() < most; ++at)
      if (!storing_.contains(*at)) batch[*at] = content(*at);
    if (batch.empty()) return;
    const std::uint64_t ticket = ++last_ticket_;
    for (const auto& [page, number] : batch) storing_[page] = ticket;
    under_way_ += batch.size();
    remote_->store(evicted(batch), [this, ticket, batch](const Status& status) {
      failed_stores_ += !status;
      under_way_ -= batch.size();
      std::vector<PageNumber> undone;
      for (const auto& [page, number] : batch) {
        const auto storing = storing_.find(page);
        if (storing == storing_.end() || storing->second != ticket) {
          if (storing == storing_.end() && local_.contains(page)) undone.push_back(page);
          continue;
        }
        storing_.erase(storing);
        if (!status) continue;
        local_.erase(page);  // punched out: from here on it must be had from the others
        if (!hosts_->may_be_lost(page, content(page))) harmed_.erase(page);
      }
      if (status) remote_->kept(undone);
    });
  }
  void harm() {
    FakeServer& server = *servers_[random_() % servers_.size()];
    if (server.held.empty()) return;
    auto at = server.held.begin();
    std::advance(at, random_() % server.held.size());
    harmed_.insert(at->first);
    if (random_() % 2 == 0)
      at->second = 0;
    else
      server.held.erase(at);
  }
  void kill() {
    --plan_.deaths;
    hosts_->kill(hosts_->any_alive(random_()));
  }

  void give_up() {
    const std::size_t host = hosts_->any_alive(random_());
    if (!remote_->can_do_without(host)) return;
    --plan_.give_ups;
    hosts_->kill(host);
  }

  Plan plan_;
  std::mt19937 random_;
  std::unique_ptr<TestedHosts> hosts_;
  std::vector<std::unique_ptr<FakeServer>>& servers_;
  RemoteMemory* remote_;
  Contents contents_;              ///< what each page must contain
  std::set<PageNumber> local_, fetching_, harmed_;
  std::map<PageNumber, std::uint64_t> storing_;  ///< page -> the ticket that will evict it
  std::size_t under_way_ = 0;      ///< pages of stores that were not answered
  std::uint64_t last_number_ = 0, last_ticket_ = 0, failed_stores_ = 0;
  bool lost_ = false;
};

}  // namespace yado::pager
