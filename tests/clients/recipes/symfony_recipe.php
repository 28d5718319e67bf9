<?php
// Runs the blocks of docs/clients.md for Symfony and for Nextcloud, which sends with Symfony Mailer:
// php symfony_recipe.php PRODUCT SUBJECT BLOCK
require getenv('SYMFONY_MAILER') ?: 'Symfony/Component/Mailer/autoload.php';

use Symfony\Component\Mailer\Mailer;
use Symfony\Component\Mailer\Transport;
use Symfony\Component\Mailer\Transport\Smtp\EsmtpTransport;
use Symfony\Component\Mime\Email;

[, $product, $subject, $block] = $argv;

$transport = match ($product) {
    'Symfony' => Transport::fromDsn(parse_ini_string(strstr(file_get_contents($block), 'MAILER_DSN'), false, INI_SCANNER_RAW)['MAILER_DSN']),
    // as OC\Mail\Mailer::getSmtpInstance
    'Nextcloud' => (function () use ($block) {
        $config = eval('return [' . file_get_contents($block) . '];');
        $tls = $config['mail_smtpsecure'] === 'ssl' ? true : null;
        $transport = new EsmtpTransport($config['mail_smtphost'], $config['mail_smtpport'], $tls);
        return $transport->setUsername($config['mail_smtpname'])->setPassword($config['mail_smtppassword']);
    })(),
};
$email = (new Email())->from('you@example.com')->to('to@x.example')->subject($subject)->text('Hello');
try {
    (new Mailer($transport))->send($email);
} catch (Exception $error) {
    fwrite(STDERR, $error->getMessage());
    exit(1);
}
