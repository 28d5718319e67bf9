# Sends one mail with Net::SMTP; the order is JSON on standard input. The message comes finished, as to every Net::SMTP.
use strict;
use warnings;
use JSON::PP;
use Net::SMTP;

my $order = decode_json(do { local $/; <STDIN> });
my ($account, $envelope) = @$order{qw(account envelope)};
my $smtp = Net::SMTP->new(
    $account->{host},
    Port          => $account->{port},
    SSL           => $account->{security} eq 'tls',
    SSL_ca_file   => $account->{authority},
    Timeout       => 20,
) or die "connect: $@\n";

sub check {
    my ($done) = @_;
    die join(' ', $smtp->code, $smtp->message) . "\n" unless $done;
}

check($smtp->starttls(SSL_ca_file => $account->{authority})) if $account->{security} eq 'starttls';
check($smtp->auth($account->{username}, $account->{password}));
check($smtp->mail($order->{mail}{from}{address}));
check($smtp->recipient(@$envelope));
check($smtp->data());
utf8::encode($order->{message});
$smtp->datasend($order->{message});
check($smtp->dataend());
print $smtp->code, ' ', $smtp->message;
$smtp->quit;
