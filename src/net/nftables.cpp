#include "net/nftables.hpp"

extern "C" {
#include <nftables/libnftables.h>
}

#include <memory>
#include <mutex>

namespace yado::net {
namespace {

Errc code_of(const std::string& message) {
  // libnftables gives text only; these are strerror() of the C locale, which no part of Yadokari changes.
  if (message.find("No such file or directory") != std::string::npos) return Errc::not_found;
  if (message.find("File exists") != std::string::npos) return Errc::already_exists;
  if (message.find("Operation not permitted") != std::string::npos) return Errc::permission;
  return Errc::io;
}

Result<std::string> run_here(const std::string& commands) {
  // Contexts share the library's symbol tables.
  static std::mutex one_at_a_time;
  const std::lock_guard lock(one_at_a_time);
  const std::unique_ptr<nft_ctx, decltype(&nft_ctx_free)> context(nft_ctx_new(NFT_CTX_DEFAULT), &nft_ctx_free);
  if (!context) return fail(Errc::io, "nftables: cannot start (out of memory?)");
  nft_ctx_output_set_flags(context.get(), NFT_CTX_OUTPUT_NUMERIC_ALL);
  nft_ctx_buffer_output(context.get());
  nft_ctx_buffer_error(context.get());
  if (nft_run_cmd_from_buffer(context.get(), commands.c_str()) != 0) {
    const std::string message = nft_ctx_get_error_buffer(context.get());
    return fail(code_of(message), "nftables: {}", message);
  }
  return std::string(nft_ctx_get_output_buffer(context.get()));
}

}  // namespace

Result<std::string> nft(const os::Netns& netns, const std::string& commands) {
  return os::run_in(netns, [&] { return run_here(commands); });
}

}  // namespace yado::net
