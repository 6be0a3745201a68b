#include "wire/tls.hpp"

#include <openssl/ssl.h>

#include <boost/asio/buffer.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/system/system_error.hpp>

#include "wire/files.hpp"
#include "wire/openssl.hpp"

namespace yado::wire {
namespace asio = boost::asio;
namespace {

Result<std::shared_ptr<asio::ssl::context>> make_context(const Identity& identity, asio::ssl::context::method method) {
  YADO_TRY(check_pair(identity.certificate, identity.key), "own identity");
  try {
    auto context = std::make_shared<asio::ssl::context>(method);
    SSL_CTX* raw = context->native_handle();
    SSL_CTX_set_min_proto_version(raw, TLS1_3_VERSION);
    // Tickets would be written behind the handshake into idle connections; a handshake per pooled connection is cheap.
    SSL_CTX_set_num_tickets(raw, 0);
    SSL_CTX_set_session_cache_mode(raw, SSL_SESS_CACHE_OFF);
    context->set_verify_mode(asio::ssl::verify_peer | asio::ssl::verify_fail_if_no_peer_cert);
    context->add_certificate_authority(asio::buffer(identity.authority));
    context->use_certificate_chain(asio::buffer(identity.certificate));
    context->use_private_key(asio::buffer(identity.key), asio::ssl::context::pem);
    return context;
  } catch (const boost::system::system_error& error) {
    return fail(Errc::corrupt, "TLS with this identity: {}", error.code().message());
  }
}

}  // namespace

Result<Identity> Identity::load(const std::filesystem::path& directory) {
  Identity identity;
  YADO_ASSIGN(identity.certificate, read_file(directory / "cert.pem", false), "identity");
  YADO_ASSIGN(identity.key, read_file(directory / "key.pem", true), "identity");
  YADO_ASSIGN(identity.authority, read_file(directory / "ca.pem", false), "identity");
  YADO_TRY(check_pair(identity.certificate, identity.key), "identity in " + directory.string());
  YADO_TRY(parse_certificate(identity.authority), "identity in " + directory.string() + ": ca.pem");
  return identity;
}

Status Identity::save(const std::filesystem::path& directory) const {
  YADO_TRY(make_private_directory(directory), "save identity");
  YADO_TRY(write_file(directory / "key.pem", key, 0600), "save identity");
  YADO_TRY(write_file(directory / "ca.pem", authority, 0644), "save identity");
  YADO_TRY(write_file(directory / "cert.pem", certificate, 0644), "save identity");
  return {};
}

Result<std::shared_ptr<asio::ssl::context>> server_context(const Identity& identity) {
  return make_context(identity, asio::ssl::context::tls_server);
}

Result<std::shared_ptr<asio::ssl::context>> client_context(const Identity& identity) {
  return make_context(identity, asio::ssl::context::tls_client);
}

}  // namespace yado::wire
