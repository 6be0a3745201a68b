#pragma once
// A memory server as a pager's logic sees it: requests that are answered once, in their order. What is behind it is a
// connection (server_link.hpp) or, in tests, a simulation.

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "pager/channel.hpp"

namespace yado::pager {

/// Pages to store: `contents[i]` is page `pages[i]`, null for a zero page. Kept alive by `hold`.
struct PutBatch {
  std::vector<PageNumber> pages;  ///< ascending
  std::vector<const std::byte*> contents;
  std::shared_ptr<const void> hold;
  bool unchanged = false;  ///< all of them: since the last cut that was kept
};

/// One thread. An answer comes later, never from inside the call. After the server is dead (its on_dead was called), every request under
/// way and every new one is answered with an error.
class PageServer {
 public:
  virtual ~PageServer() = default;
  /// The frame of a PAGES answer, already checked to be about these pages.
  using Got = std::function<void(Result<std::pair<Batch, Frame>>)>;
  using Done = std::function<void(Status)>;
  virtual void get(std::vector<PageRun> pages, Got got) = 0;
  virtual void put(PutBatch batch, Done done) = 0;
  virtual void drop(std::vector<PageRun> pages, Done done) = 0;
  virtual bool alive() const = 0;
  /// Answers now; not so while a broken connection is being made anew.
  virtual bool connected() const = 0;
  /// Takes pages; an image on a disk gives some and takes none.
  virtual bool writable() const { return true; }
  /// Pages with data that it takes from us, all together.
  virtual std::uint64_t quota_pages() const { return ~std::uint64_t{0}; }
  virtual const std::string& name() const = 0;
  /// It gave a wrong answer: break the connection off.
  virtual void distrust(const Error& why) = 0;
};

}  // namespace yado::pager
