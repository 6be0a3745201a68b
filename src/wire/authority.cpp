// The certificate authority: X.509 v3 (RFC 5280), EC P-256 with SHA-256.
#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include "wire/files.hpp"
#include "wire/openssl.hpp"
#include "wire/tls.hpp"

namespace yado::wire {
namespace {

constexpr long day_seconds = 24L * 60 * 60;
constexpr long authority_days = 3652;  // 10 years
/// Hosts' clocks may be behind the one that signs.
constexpr long backdated_days = 1;
/// ub-common-name of RFC 5280.
constexpr std::size_t longest_name = 64;

Result<KeyHandle> make_key() {
  KeyHandle key(EVP_EC_gen("P-256"));
  if (!key) return fail_openssl("make an EC P-256 key");
  return key;
}

/// 159 random bits: unguessable, positive, and within the 20 bytes that RFC 5280 4.1.2.2 allows.
Status set_serial(X509& certificate) {
  const std::unique_ptr<BIGNUM, FreeBy<BN_free>> number(BN_new());
  if (!number || BN_rand(number.get(), 159, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) != 1 ||
      BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(&certificate)) == nullptr)
    return fail_openssl("make a serial number");
  return {};
}

Status add_extension(X509& certificate, X509& issuer, int nid, const char* value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, &issuer, &certificate, nullptr, nullptr, 0);
  const std::unique_ptr<X509_EXTENSION, FreeBy<X509_EXTENSION_free>> extension(
      X509V3_EXT_conf_nid(nullptr, &context, nid, value));
  if (!extension || X509_add_ext(&certificate, extension.get(), -1) != 1)
    return fail_openssl(fmt::format("certificate extension {}", OBJ_nid2sn(nid)));
  return {};
}

/// What every certificate has; extensions and the signature are still missing.
Result<CertificateHandle> begin_certificate(const std::string& common_name, EVP_PKEY& key) {
  CertificateHandle certificate(X509_new());
  if (!certificate || X509_set_version(certificate.get(), X509_VERSION_3) != 1 ||
      X509_set_pubkey(certificate.get(), &key) != 1 ||
      X509_NAME_add_entry_by_NID(X509_get_subject_name(certificate.get()), NID_commonName, MBSTRING_UTF8,
                                 reinterpret_cast<const unsigned char*>(common_name.data()),
                                 static_cast<int>(common_name.size()), -1, 0) != 1 ||
      X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -backdated_days * day_seconds) == nullptr)
    return fail_openssl(fmt::format("make a certificate for {}", common_name));
  YADO_TRY(set_serial(*certificate), "certificate");
  return certificate;
}

struct Made {
  std::string certificate;
  std::string key;
};

Result<Made> make_authority() {
  YADO_ASSIGN(auto key, make_key(), "authority");
  YADO_ASSIGN(auto certificate, begin_certificate("Yadokari authority", *key), "authority");
  if (X509_gmtime_adj(X509_getm_notAfter(certificate.get()), authority_days * day_seconds) == nullptr ||
      X509_set_issuer_name(certificate.get(), X509_get_subject_name(certificate.get())) != 1)
    return fail_openssl("authority");
  YADO_TRY(add_extension(*certificate, *certificate, NID_basic_constraints, "critical,CA:TRUE,pathlen:0"), "authority");
  YADO_TRY(add_extension(*certificate, *certificate, NID_key_usage, "critical,keyCertSign,cRLSign"), "authority");
  YADO_TRY(add_extension(*certificate, *certificate, NID_subject_key_identifier, "hash"), "authority");
  if (X509_sign(certificate.get(), key.get(), EVP_sha256()) == 0) return fail_openssl("sign the authority");
  Made made;
  YADO_ASSIGN(made.certificate, to_pem(*certificate), "authority");
  YADO_ASSIGN(made.key, to_pem(*key), "authority");
  return made;
}

bool is_there(const std::filesystem::path& path) {
  struct stat found {};
  return ::lstat(path.c_str(), &found) == 0;
}

}  // namespace

Result<Authority> Authority::open_or_create(const std::filesystem::path& directory) {
  const auto certificate_path = directory / "ca.pem";
  const auto key_path = directory / "ca-key.pem";
  const bool has_certificate = is_there(certificate_path), has_key = is_there(key_path);
  if (has_certificate != has_key)
    return fail(
        Errc::corrupt,
        "authority in {}: {} is there and {} is not (half-written or half-removed): restore the missing file from "
        "a backup, or remove {} to make a new authority, which then must issue every certificate again",
        directory.string(), has_key ? "ca-key.pem" : "ca.pem", has_key ? "ca.pem" : "ca-key.pem",
        (has_key ? key_path : certificate_path).string());
  Authority authority;
  if (!has_key) {
    YADO_ASSIGN(auto made, make_authority(), "make an authority in " + directory.string());
    YADO_TRY(make_private_directory(directory), "make an authority");
    YADO_TRY(write_file(key_path, made.key, 0600), "make an authority");
    YADO_TRY(write_file(certificate_path, made.certificate, 0644), "make an authority");
    authority.certificate_ = std::move(made.certificate);
    authority.key_ = std::move(made.key);
    return authority;
  }
  YADO_ASSIGN(authority.certificate_, read_file(certificate_path, false), "authority");
  YADO_ASSIGN(authority.key_, read_file(key_path, true), "authority");
  if (auto good = check_pair(authority.certificate_, authority.key_); !good)
    return context(good.error(),
                   fmt::format("authority in {} is damaged (restore ca.pem and ca-key.pem from a backup, or "
                               "remove both to make a new one)",
                               directory.string()));
  return authority;
}

Result<Identity> Authority::issue(const std::string& common_name) const {
  if (common_name.empty() || common_name.size() > longest_name)
    return fail(Errc::invalid_argument, "certificate for \"{}\": a common name has 1 to {} bytes", common_name,
                longest_name);
  YADO_ASSIGN(auto signer, parse_certificate(certificate_), "authority");
  YADO_ASSIGN(auto signing_key, parse_key(key_), "authority");
  YADO_ASSIGN(auto key, make_key(), "certificate for " + common_name);
  YADO_ASSIGN(auto certificate, begin_certificate(common_name, *key), "certificate for " + common_name);
  // As long as the authority: revocation is a new authority, and no role stops one night because a date passed.
  if (X509_set1_notAfter(certificate.get(), X509_get0_notAfter(signer.get())) != 1 ||
      X509_set_issuer_name(certificate.get(), X509_get_subject_name(signer.get())) != 1)
    return fail_openssl("certificate for " + common_name);
  YADO_TRY(add_extension(*certificate, *signer, NID_basic_constraints, "critical,CA:FALSE"), "certificate");
  YADO_TRY(add_extension(*certificate, *signer, NID_key_usage, "critical,digitalSignature"), "certificate");
  YADO_TRY(add_extension(*certificate, *signer, NID_ext_key_usage, "clientAuth,serverAuth"), "certificate");
  YADO_TRY(add_extension(*certificate, *signer, NID_subject_key_identifier, "hash"), "certificate");
  YADO_TRY(add_extension(*certificate, *signer, NID_authority_key_identifier, "keyid"), "certificate");
  if (X509_sign(certificate.get(), signing_key.get(), EVP_sha256()) == 0)
    return fail_openssl("sign the certificate for " + common_name);
  Identity identity;
  identity.authority = certificate_;
  YADO_ASSIGN(identity.certificate, to_pem(*certificate), "certificate");
  YADO_ASSIGN(identity.key, to_pem(*key), "certificate");
  return identity;
}

}  // namespace yado::wire
