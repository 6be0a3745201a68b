#include "pager/image_server.hpp"

#include <algorithm>
#include <boost/asio/post.hpp>

#include "base/log.hpp"

namespace yado::pager {
namespace asio = boost::asio;

ImageServer::ImageServer(asio::any_io_executor executor, std::shared_ptr<const image::PageChain> chain, std::string name)
    : executor_(std::move(executor)), chain_(std::move(chain)), name_(std::move(name)), thread_([this] { work(); }) {}

ImageServer::~ImageServer() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wished_.notify_all();
  thread_.join();
}

std::vector<KindRun> ImageServer::held() const {
  std::vector<image::PlacedPage> all;
  for (const image::PagePart* part : chain_->parts()) {
    if (!part->has_log()) continue;
    const auto live = chain_->live(*part);
    all.insert(all.end(), live.begin(), live.end());
  }
  std::ranges::sort(all, {}, &image::PlacedPage::page);
  std::vector<KindRun> runs;
  for (const image::PlacedPage& placed : all) append(runs, image::value_of(placed.page), placed.record.zero() ? PageKind::zero : PageKind::data);
  return runs;
}

void ImageServer::work() {
  for (;;) {
    Wish wish;
    {
      std::unique_lock lock(mutex_);
      wished_.wait(lock, [&] { return stop_ || !wishes_.empty() || !urgent_.empty(); });
      if (stop_) return;
      auto& next = urgent_.empty() ? wishes_ : urgent_;
      wish = std::move(next.front());
      next.pop_front();
    }
    auto answer = std::make_shared<Result<std::pair<Batch, Frame>>>(read(wish.pages));
    asio::post(executor_, [answer, got = std::move(wish.got)] { got(std::move(*answer)); });
  }
}

Result<std::pair<Batch, Frame>> ImageServer::read(const std::vector<PageRun>& pages) const {
  std::size_t count = 0;
  for (const PageRun& run : pages) count += run.pages;
  Batch batch;
  const std::shared_ptr<std::byte[]> block = std::make_unique_for_overwrite<std::byte[]>(count * page_bytes);
  std::byte* at = block.get();
  for (const PageRun& run : pages)
    for (PageNumber page = run.first; page < run.first + run.pages; ++page) {
      const auto place = chain_->find(image::PageNumber{page});
      if (place.page.record.zero()) {
        append(batch.runs, page, PageKind::zero);
        continue;
      }
      YADO_TRY(place.part->read(place.page, image::PageBuffer(at, page_bytes)), name_);
      append(batch.runs, page, PageKind::data);
      at += page_bytes;
    }
  Frame frame;
  frame.body = batch.data = Bytes(block.get(), static_cast<std::size_t>(at - block.get()));
  frame.hold = block;
  return std::pair(std::move(batch), std::move(frame));
}

void ImageServer::get(std::vector<PageRun> pages, Got got) {
  {
    const std::lock_guard lock(mutex_);
    // Somebody waits for a page that is asked for alone; windows and what is fetched in the background can wait.
    const bool urgent = pages.size() == 1 && pages.front().pages == 1;
    (urgent ? urgent_ : wishes_).push_back({std::move(pages), std::move(got)});
  }
  wished_.notify_one();
}

void ImageServer::put(PutBatch, Done done) {
  asio::post(executor_, [this, done = std::move(done)] { done(fail(Errc::unsupported, "{} is an image: nothing is written to it", name_)); });
}

void ImageServer::drop(std::vector<PageRun>, Done done) {
  asio::post(executor_, [done = std::move(done)] { done({}); });
}

void ImageServer::distrust(const Error& why) { log::error("{}: {}", name_, why.text()); }

}  // namespace yado::pager
