#include "pager/image_server.hpp"

#include <algorithm>
#include <boost/asio/post.hpp>

#include "base/log.hpp"

namespace yado::pager {
namespace asio = boost::asio;

/// One GET on its way, read page by page.
struct ImageServer::Wish {
  std::vector<PageNumber> pages;
  Got got;
  std::size_t next = 0;
  Batch batch;
  std::shared_ptr<std::byte[]> block;
  std::byte* end = nullptr;  ///< of what was read

  Wish(const std::vector<PageRun>& runs, Got what) : got(std::move(what)) {
    for (const PageRun& run : runs)
      for (std::uint32_t i = 0; i < run.pages; ++i) pages.push_back(run.first + i);
    block = std::make_unique_for_overwrite<std::byte[]>(pages.size() * page_bytes);
    end = block.get();
  }

  Status read_next(const image::PageChain& chain) {
    const PageNumber page = pages[next++];
    const auto place = chain.find(image::PageNumber{page});
    if (place.page.record.zero()) {
      append(batch.runs, page, PageKind::zero);
      return {};
    }
    YADO_TRY(place.part->read(place.page, image::PageBuffer(end, page_bytes)), "image");
    append(batch.runs, page, PageKind::data);
    end += page_bytes;
    return {};
  }

  std::pair<Batch, Frame> answer() {
    Frame frame;
    frame.body = batch.data = Bytes(block.get(), static_cast<std::size_t>(end - block.get()));
    frame.hold = block;
    return {std::move(batch), std::move(frame)};
  }
};

ImageServer::ImageServer(asio::any_io_executor executor, std::shared_ptr<const image::PageChain> chain, std::string name)
    : executor_(std::move(executor)), chain_(std::move(chain)), name_(std::move(name)) {}

std::vector<KindRun> ImageServer::held() const {
  std::vector<KindRun> runs;
  chain_->visit([&](image::PageNumber page, const image::PagePart& part, const image::PageRecord& record) {
    if (part.has_log()) append(runs, image::value_of(page), record.zero() ? PageKind::zero : PageKind::data);
  });
  return runs;
}

void ImageServer::get(std::vector<PageRun> pages, Got got) {
  // Somebody waits for a page that is asked for alone; windows and what is fetched in the background can wait.
  const bool alone = pages.size() == 1 && pages.front().pages == 1;
  auto wish = std::make_shared<Wish>(pages, std::move(got));
  queue_.add(alone ? ReadQueue::Urgency::somebody_waits : ReadQueue::Urgency::background, [this, wish = std::move(wish)] {
    const Status read = wish->read_next(*chain_);
    if (read && wish->next < wish->pages.size()) return true;
    auto answer = std::make_shared<Result<std::pair<Batch, Frame>>>(read ? Result<std::pair<Batch, Frame>>(wish->answer()) : context(read.error(), name_));
    asio::post(executor_, [answer, got = std::move(wish->got)] { got(std::move(*answer)); });
    return false;
  });
}

void ImageServer::put(PutBatch, Done done) {
  asio::post(executor_, [this, done = std::move(done)] { done(fail(Errc::unsupported, "{} is an image: nothing is written to it", name_)); });
}

void ImageServer::drop(std::vector<PageRun>, Done done) {
  asio::post(executor_, [done = std::move(done)] { done({}); });
}

void ImageServer::distrust(const Error& why) { log::error("{}: {}", name_, why.text()); }

}  // namespace yado::pager
