#pragma once
// An image on this host's disk as a server of pages: a restored memory runs at once, and what it has not touched yet lies where
// the checkpoint put it. Read-only: a page that was changed goes to the memory servers, an unchanged one is forgotten
// here again for nothing.

#include <boost/asio/any_io_executor.hpp>

#include "image/page_chain.hpp"
#include "pager/page_server.hpp"
#include "pager/read_queue.hpp"

namespace yado::pager {

/// Reads on a thread of its own, a page that is asked for alone before windows and background; every page is compared with its checksum.
class ImageServer final : public PageServer {
 public:
  /// Pages whose newest record lies in a log of `chain` that is here.
  ImageServer(boost::asio::any_io_executor executor, std::shared_ptr<const image::PageChain> chain, std::string name);
  ImageServer(const ImageServer&) = delete;
  ImageServer& operator=(const ImageServer&) = delete;

  /// What it has, ascending.
  std::vector<KindRun> held() const;

  void get(std::vector<PageRun> pages, Got got) override;
  void put(PutBatch batch, Done done) override;
  void drop(std::vector<PageRun> pages, Done done) override;
  bool alive() const override { return true; }
  bool connected() const override { return true; }
  bool writable() const override { return false; }
  const std::string& name() const override { return name_; }
  void distrust(const Error& why) override;

 private:
  struct Wish;

  boost::asio::any_io_executor executor_;
  std::shared_ptr<const image::PageChain> chain_;
  std::string name_;
  ReadQueue queue_;  ///< last: its thread uses the others
};

}  // namespace yado::pager
