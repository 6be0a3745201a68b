#include "pager/page_move.hpp"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

namespace yado::pager {
namespace {
/// Enough to keep a link busy; each holds a block.
constexpr unsigned most_under_way = 4;
}  // namespace

PageMove::~PageMove() {
  if (link_) link_->close();
}

void PageMove::start(const std::shared_ptr<PageMove>& self) {
  boost::asio::co_spawn(self->what_.executor, connect(self), boost::asio::detached);
}

boost::asio::awaitable<void> PageMove::connect(std::shared_ptr<PageMove> self) {
  if (self->link_) co_return self->pump();
  auto link = ServerLink::make(self->what_.executor, self->what_.blocks, self->what_.request.to,
                               {.hello = self->what_.hello, .identity = self->what_.identity.get()});
  if (!link) co_return self->tell(context(link.error(), "MOVE"));
  self->link_ = std::move(*link);
  const auto welcome = co_await ServerLink::open(self->link_);
  if (!welcome) co_return self->tell(context(welcome.error(), "MOVE"));
  self->pump();
}

void PageMove::pump() {
  while (done_ && !failed_ && under_way_ < most_under_way && run_ < what_.request.wanted.size())
    if (auto sent = send_some(); !sent) failed_ = sent.error();
  if (under_way_ == 0) tell(failed_ ? context(*failed_, "MOVE") : Result<std::uint64_t>(moved_));
}

/// The next pages, as many as one message may have.
Status PageMove::send_some() {
  Batch wanted;
  for (std::uint32_t room = most_data_pages; room > 0 && run_ < what_.request.wanted.size();) {
    const KindRun& run = what_.request.wanted[run_];
    const std::uint32_t some = std::min(room, run.pages - in_run_);
    wanted.runs.push_back({run.first + in_run_, some, PageKind::wanted});
    room -= some;
    in_run_ += some;
    if (in_run_ < run.pages) break;
    ++run_;
    in_run_ = 0;
  }
  const auto block = what_.blocks.take();
  YADO_ASSIGN(const PageStore::Found found, what_.store->get(what_.owner, wanted, {block.get(), what_.blocks.block_bytes()}), "MOVE");
  PutBatch batch;
  const std::byte* data = found.data.data();
  for (const KindRun& run : found.runs)
    for (PageNumber page = run.first; page < run.first + run.pages; ++page) {
      if (run.kind == PageKind::absent) continue;
      batch.pages.push_back(page);
      batch.contents.push_back(run.kind == PageKind::data ? data : nullptr);
      if (run.kind == PageKind::data) data += page_bytes;
    }
  if (batch.pages.empty()) return {};
  moved_ += batch.pages.size();
  batch.hold = block;
  ++under_way_;
  link_->put(std::move(batch), [weak = weak_from_this()](const Status& status) {
    const auto self = weak.lock();
    if (!self) return;
    --self->under_way_;
    if (!status && !self->failed_) self->failed_ = status.error();
    self->pump();
  });
  return {};
}

void PageMove::tell(const Result<std::uint64_t>& result) {
  if (!done_) return;
  const Done done = std::exchange(done_, nullptr);
  const std::shared_ptr<ServerLink> link = std::exchange(link_, nullptr);
  if (link && !result) link->close();
  done(result, result ? link : nullptr);
}

void PageMove::end() {
  done_ = nullptr;
  if (link_) link_->close();
}

}  // namespace yado::pager
