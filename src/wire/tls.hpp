#pragma once
// Mutual TLS between roles. The authority is made on first start and lives in one directory (mode 0700); a role's
// common name is "<role>:<name>" ("agent:h2", "gate:g1", "control:c1"), and that name is who it is.

#include <boost/asio/ssl/context.hpp>
#include <filesystem>
#include <memory>
#include <string>

#include "base/error.hpp"

namespace yado::wire {

/// What a role needs to prove who it is and to check others. PEM texts; the key is secret.
struct Identity {
  std::string certificate;
  std::string key;
  std::string authority;

  /// Files cert.pem, key.pem (mode 0600) and ca.pem in `directory`.
  static Result<Identity> load(const std::filesystem::path& directory);
  Status save(const std::filesystem::path& directory) const;
};

class Authority {
 public:
  /// Opens the authority in `directory` or makes one (EC P-256, written atomically). A half-written one is an error
  /// that says which file to remove.
  static Result<Authority> open_or_create(const std::filesystem::path& directory);
  /// A certificate for `common_name`, good as client and as server (peers check the name, not an address).
  Result<Identity> issue(const std::string& common_name) const;

 private:
  std::string certificate_;
  std::string key_;
};

/// TLS 1.3 only; both sides must show a certificate of the authority.
Result<std::shared_ptr<boost::asio::ssl::context>> server_context(const Identity& identity);
Result<std::shared_ptr<boost::asio::ssl::context>> client_context(const Identity& identity);

}  // namespace yado::wire
