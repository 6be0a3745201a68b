#include "pager/write_back.hpp"

#include <boost/asio/post.hpp>
#include <cstring>
#include <future>

namespace yado::pager {
namespace asio = boost::asio;
namespace {

/// Stores on their way at once: enough to keep a link busy, and bounded.
constexpr unsigned most_under_way = 8;

}  // namespace

/// Pages of one store; a zero page takes no room.
struct WriteBack::Block {
  static constexpr std::size_t most = 64;
  std::unique_ptr<std::byte[]> bytes{new std::byte[most * page_bytes]};
  Evicted evicted;
  std::size_t used = 0;
};

WriteBack::WriteBack(Pager& pager, RemoteMemory& remote, asio::any_io_executor network, std::vector<SplitSave::Server> servers, Options options)
    : pager_(pager), remote_(remote), network_(std::move(network)), servers_(std::move(servers)), options_(options) {}

/// Copies of what goes on being written here are duplicates, which give way to what must be remote: but not before it goes on, because until then
/// the servers' pages may be what another host goes on with.
WriteBack::~WriteBack() {
  if (!begun_) return;
  (void)wait_for_stores();
  pager_.end_save(false);
  std::vector<PageNumber> here;
  const PageBits bits = pager_.here();
  for (PageNumber page = bits.next(0); page < bits.size(); page = bits.next(page + 1)) here.push_back(page);
  std::promise<void> done;
  asio::post(network_, [&] {
    remote_.leave_images(false);
    remote_.kept(here);
    done.set_value();
  });
  done.get_future().wait();
  pager_.keep_all_no_more(options_.local_limit);
}

Status WriteBack::begin() {
  YADO_TRY(pager_.begin_save(false), "move");
  begun_ = true;
  asio::post(network_, [this] { remote_.leave_images(true); });
  return {};
}

Status WriteBack::add(PageNumber page, const std::byte* content) {
  static const std::array<std::byte, page_bytes> zeroes{};
  if (!filling_) filling_ = std::make_shared<Block>();
  Block& block = *filling_;
  std::byte* at = nullptr;
  if (content != nullptr) {
    at = block.bytes.get() + block.used++ * page_bytes;
    std::memcpy(at, content, page_bytes);
  }
  block.evicted.piece.pages.push_back(page);
  block.evicted.piece.contents.push_back(at);
  block.evicted.sums.push_back(sum_of(at == nullptr ? PageData(zeroes) : PageData(at, page_bytes), options_.seed));
  if (block.evicted.piece.pages.size() == Block::most) send();
  const std::lock_guard lock(mutex_);
  return failed_;
}

void WriteBack::send() {
  if (!filling_) return;
  {
    std::unique_lock lock(mutex_);
    stored_.wait(lock, [&] { return under_way_ < most_under_way; });
    ++under_way_;
  }
  asio::post(network_, [this, block = std::exchange(filling_, nullptr)] {
    // Only what stays for now. Whatever leaves from here on is stored behind this.
    const std::vector<bool> stay = pager_.staying(block->evicted.piece.pages);
    Evicted some;
    for (std::size_t i = 0; i < stay.size(); ++i) {
      if (!stay[i]) continue;
      some.piece.pages.push_back(block->evicted.piece.pages[i]);
      some.piece.contents.push_back(block->evicted.piece.contents[i]);
      some.sums.push_back(block->evicted.sums[i]);
    }
    some.piece.hold = block;
    some.to = options_.landing;
    remote_.store(std::move(some), [this](const Status& stored) {
      {
        const std::lock_guard lock(mutex_);
        --under_way_;
        if (!stored && failed_) failed_ = stored;
        stored_.notify_all();
      }
    });
  });
}

Status WriteBack::wait_for_stores() {
  send();
  std::unique_lock lock(mutex_);
  stored_.wait(lock, [&] { return under_way_ == 0; });
  return failed_;
}

Result<Pager::Round> WriteBack::round() {
  auto done = pager_.save_round([this](PageNumber page, const std::byte* content) { return add(page, content); });
  YADO_TRY(wait_for_stores(), "move");
  std::promise<void> rebuilt;
  asio::post(network_, [&] { remote_.when_rebuilt([&] { rebuilt.set_value(); }); });
  rebuilt.get_future().wait();
  return done;
}

/// Requests are carried out in their order: whatever was asked of a living server before has been done.
Status WriteBack::all_sent() {
  std::promise<void> sent;
  asio::post(network_, [&] { remote_.when_sent([&] { sent.set_value(); }); });
  sent.get_future().wait();
  std::vector<std::future<Status>> answers;
  for (const SplitSave::Server& one : servers_) {
    if (!one.link) continue;  // an image
    auto promise = std::make_shared<std::promise<Status>>();
    answers.push_back(promise->get_future());
    asio::post(network_, [link = one.link, host = one.host, promise] {
      if (!link->alive()) return promise->set_value({});
      link->request(Operation::stat, {}, [promise, host, link](const Result<Frame>& frame) {
        const bool settled = frame.has_value() || !link->alive();  // nothing more is carried out by one that died meanwhile
        promise->set_value(settled ? Status() : context(frame.error(), fmt::format("memory on {}", host)));
      });
    });
  }
  Status all;
  for (auto& answer : answers)
    if (const Status one = answer.get(); !one && all) all = one;
  return all;
}

Error WriteBack::why_missing(PageNumber page) const {
  if (remote_.lost(page)) return {Errc::unavailable, fmt::format("page {} is lost: no server has it any more", page)};
  if (remote_.is_computed(page)) return {Errc::unavailable, fmt::format("a memory host was lost meanwhile: page {} is only in the parity until another has taken its place", page)};
  return {Errc::no_space, "the memory servers have no room for what is still in the image on this host's disk"};
}

/// Pages that are here and on no server: copies of pages that are here give way when room is short.
Result<std::vector<PageNumber>> WriteBack::missing() {
  const PageBits here = pager_.here();
  std::promise<Result<std::vector<PageNumber>>> found;
  asio::post(network_, [&] {
    std::vector<PageNumber> pages;
    for (PageNumber page = 0; page < pager_.pages(); ++page) {
      if (!remote_.is_on_no_server(page)) continue;
      if (!here.test(page)) return found.set_value(std::unexpected(why_missing(page)));
      pages.push_back(page);
    }
    found.set_value(std::move(pages));
  });
  return found.get_future().get();
}

Status WriteBack::finish() {
  // First what was to leave anyway; then nothing moves any more.
  pager_.keep_all();
  YADO_TRY(all_sent(), "move");
  pager_.keep_all();
  for (std::uint64_t short_of = ~std::uint64_t{0};;) {
    Pager::Round last{0, 1};
    while (last.left > 0) {
      YADO_ASSIGN(last, round(), "move");
    }
    YADO_TRY(all_sent(), "move");
    YADO_ASSIGN(const auto pages, missing(), "move");
    if (pages.empty()) return {};
    if (pages.size() >= short_of) return fail(Errc::no_space, "move: the memory servers have no room for {} pages of it", pages.size());
    short_of = pages.size();
    pager_.save_again(pages);
  }
}

}  // namespace yado::pager
