#pragma once
// One checkpoint of a memory that lies here and on servers: every host saves what it holds, at one instant (page_protocol.md, "Checkpoint").
//
//   SplitSave save(…);  save.begin();  save.round() … save.copy() …  [it stands still] save.fix()  [it goes on]  save.finish();  save.keep();
//
// Destruction without keep() abandons it everywhere. One thread, not the network's.

#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "image/page_chain.hpp"
#include "image/page_writer.hpp"
#include "pager/pager.hpp"
#include "pager/save_pace.hpp"
#include "pager/save_watch.hpp"
#include "pager/server_link.hpp"

namespace yado::pager {

class SplitSave {
 public:
  struct Options {
    std::string name;            ///< of the image; a server calls its share <name>.<host>
    std::filesystem::path part;  ///< a directory that exists, for what is here
    image::CutId cut;
    image::CutId base_cut;       ///< none: self-contained
    std::string base;            ///< the name of the image of that cut; may be empty
    std::uint64_t bytes_per_second = 0;  ///< that each host writes at most; 0: no limit
    /// Waits until then, because of that limit. An error: nobody wants this checkpoint any more.
    std::function<Status(SavePace::Time)> wait_until;
    std::shared_ptr<const image::PageChain> image;  ///< what the memory was restored from, as far as it lies on this host's disk
    std::shared_ptr<SaveWatch> watch;               ///< told of every page that is saved here
  };
  struct Server {
    std::shared_ptr<ServerLink> link;  ///< null, or dead: takes no part
    std::string host;
  };
  /// What one host saved.
  struct Share {
    std::string host;  ///< empty: this one
    std::uint64_t pages = 0, bytes = 0;
    std::string sum;   ///< after keep(): of the manifest of the image that the server made of it
  };
  struct Round {
    std::uint64_t pages = 0;  ///< saved in it, on all hosts, as far as they have told
    std::uint64_t here = 0;   ///< of these, here
    std::uint64_t left = 0;   ///< here, after it
  };

  /// Who has a page that is not here. Below these: the number of a server. Computed: nobody as it is (RemoteMemory); nobody: it is zero.
  enum class Holder : std::uint8_t { computed = 253, nobody = 254, image = 255 };
  /// Asked on the network's thread. An error: the page is lost.
  using Owner = std::function<Result<Holder>(PageNumber)>;
  /// `remote` and what `owner` looks at live on `network`.
  SplitSave(Pager& pager, RemoteMemory& remote, boost::asio::any_io_executor network, std::vector<Server> servers, Owner owner, Options options);
  ~SplitSave();
  SplitSave(const SplitSave&) = delete;
  SplitSave& operator=(const SplitSave&) = delete;

  Status begin();
  Result<Round> round(Pager::Hot hot = Pager::Hot::leave);
  /// Of what is here, into memory: what the workload writes faster than a disk takes it. Returns what is left, as `Round::left`.
  Result<std::uint64_t> copy() { return pager_.copy_round(); }
  /// The cut. Returns before the servers know of it: that they cannot fix their part is finish()'s error.
  Status fix();
  Result<std::vector<Share>> finish();
  Result<std::vector<Share>> keep();

 private:
  using Answers = std::vector<std::future<Result<std::vector<std::byte>>>>;
  std::future<Result<std::vector<std::byte>>> ask(const Server& server, Operation operation, std::vector<std::byte> body, std::uint16_t flags = 0);
  Answers ask_all(Operation operation);
  Result<Answers> fix_on_servers();  // on the network's thread
  Status wait_until_fixed();
  Status all_done(Answers& answers);
  Pager::SaveSink sink();
  Status keep_to_rate(std::uint64_t bytes);
  std::string name_on(const Server& server) const { return options_.name + "." + server.host; }
  bool belongs_into_it(PageNumber page) const { return options_.base_cut.none() || cut_->changed.test(page); }
  Status put_computed();
  Status put_rest_of_here(image::PageSet& owned);

  Pager& pager_;
  RemoteMemory& remote_;
  boost::asio::any_io_executor network_;
  std::vector<Server> servers_;
  Owner owner_;
  Options options_;
  std::optional<image::PageWriter> writer_;
  std::optional<image::PageAppender> appender_;
  std::vector<std::size_t> taking_part_;  ///< numbers of servers, ascending
  std::uint32_t rounds_ = 0;
  SavePace pace_;
  std::uint64_t unpaced_ = 0;   ///< bytes written since the last look at the pace
  std::optional<Pager::Cut> cut_;
  std::future<Result<Answers>> fixed_;
  std::vector<Holder> owners_;  ///< by page, of those that are not here; the network's thread until that is fixed
  std::vector<Share> shares_;
  bool begun_ = false, kept_ = false;
};

}  // namespace yado::pager
