#pragma once
// What a memory server keeps of one workload, from the first HELLO to END, over any number of connections; and all of them.
//
// Connections call from their threads. What takes long (marked) comes one after the other: what saves in the session's own line, so that a slow
// or limited checkpoint holds up nobody else's; what loads on the loader's one thread, so that nobody's recovery waits for a checkpoint. Only
// in its line a saving begins and ends.

#include <atomic>
#include <boost/asio/any_io_executor.hpp>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "pager/image_archive.hpp"
#include "pager/page_store.hpp"
#include "pager/saving.hpp"

namespace yado::pager {

class Session {
 public:
  /// A strand, for what saves.
  using Line = boost::asio::any_io_executor;
  Session(std::string name, std::string owner, std::uint64_t instance, PageArena& arena, const Hello& hello,
          std::shared_ptr<PageArchive> archive, Line line = {})
      : name_(std::move(name)), instance_(instance), archive_(std::move(archive)), line_(std::move(line)),
        store_(arena, hello.pages, hello.quota_pages), owner_(std::move(owner)) {}

  const std::string& name() const { return name_; }
  /// The peer it belongs to.
  std::string owner() const {
    const std::lock_guard lock(mutex_);
    return owner_;
  }
  void belongs_to(std::string peer) {
    const std::lock_guard lock(mutex_);
    owner_ = std::move(peer);
  }
  std::uint64_t instance() const { return instance_; }
  PageStore& store() { return store_; }
  const PageStore& store() const { return store_; }
  bool has_archive() const { return archive_ != nullptr; }
  const Line& line() const { return line_; }

  /// Whatever takes long ends soon, with an error; nothing new begins.
  void end();
  bool ended() const { return ended_; }

  // The draft. Errors: conflict (another one, or none, or the order is wrong), and those of Saving.
  Result<Saved> save(const SaveRequest& request, const Saving::CanFix& can_fix = {});  ///< long, in line
  Status fix(const std::string& name);
  Status own(const FinishRequest& finish);
  Result<Saved> finish(const std::string& name);               ///< long, in line
  Result<std::string> keep(const std::string& name);           ///< long, in line; what the image is known by
  void abandon(const std::string& name);                       ///< long, in line; an empty name: whichever there is
  /// In front of abandon(): what is under way ends soon.
  void stop_saving(const std::string& name);

  // An image. `more`: only notes the pages.
  void want(const LoadRequest& request);
  /// Long, on the loader's thread. Afterwards bring_in() (the same) brings at most so many pages into memory; false: there is no more to do. (A damaged page stays
  /// where it is; whoever asks for it gets the error.)
  /// Pages that are saved must find room, also where less is to be held from then on: `set_quota` is asked for it (without, they do not).
  Result<std::uint64_t> load(const PageStore::Owner& owner, const std::vector<std::string>& names, const std::function<Status(std::uint64_t pages)>& set_quota = {});
  bool bring_in(std::size_t most);

 private:
  Result<Saving*> saving(const std::string& name) const;  // mutex_ is held
  void forget_saving(const Error& why);

  const std::string name_;
  const std::uint64_t instance_;
  const std::shared_ptr<PageArchive> archive_;
  const Line line_;
  PageStore store_;
  std::atomic<bool> ended_ = false;
  mutable std::mutex mutex_;
  std::string owner_;                           // guarded by mutex_
  std::unique_ptr<Saving> saving_;              // guarded by mutex_, changed in line
  std::optional<Error> failed_;                 // guarded by mutex_: why the last one ended by itself
  std::optional<image::CutId> kept_cut_;        // guarded by mutex_: "changed" counts from it
  std::string kept_name_, kept_sum_;                       // guarded by mutex_
  std::vector<std::string> wanted_names_;       // guarded by mutex_
  std::vector<image::PageRange> wanted_;        // guarded by mutex_
  struct Source {
    const image::PagePart* part;
    image::PageSet wanted;
    std::optional<std::vector<image::PlacedPage>> pages;  ///< in file order
    std::size_t next = 0;
    std::size_t left(const image::PageChain& chain);
  };
  std::shared_ptr<const image::PageChain> chain_;  // the loader's
  std::vector<Source> sources_;                    // the loader's
};

/// Thread-safe.
class Sessions {
 public:
  Sessions(std::uint64_t capacity_pages, std::shared_ptr<PageArchive> archive, std::function<Session::Line()> new_line)
      : arena_(capacity_pages), archive_(std::move(archive)), new_line_(std::move(new_line)) {}

  /// The session that a HELLO names, made if need be. An heir owns it then, an owner does after PageStore::take_over. Errors: stale_epoch, invalid_argument, not_found, permission, conflict, no_space.
  struct Opened {
    std::shared_ptr<Session> session;
    std::shared_ptr<Session> abandoned;  ///< of an earlier life, or inherited from one: its draft wants to be abandoned
  };
  Result<Opened> open(const Hello& hello, const std::string& peer);
  /// Errors: stale_epoch, no_space (as much is not free, or more is held).
  Status set_quota(Session& session, const PageStore::Owner& owner, std::uint64_t pages);
  Status end(const std::string& name);
  void end_all();
  std::vector<std::shared_ptr<Session>> all() const;

 private:
  std::uint64_t set_aside() const;  // mutex_ is held
  Result<std::shared_ptr<Session>> join(const std::shared_ptr<Session>& session, const Hello& hello, const std::string& peer) const;

  PageArena arena_;
  std::shared_ptr<PageArchive> archive_;
  std::function<Session::Line()> new_line_;
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<Session>> sessions_;  // guarded by mutex_
};

}  // namespace yado::pager
