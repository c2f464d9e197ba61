// Everything that Octopus needs in one resource group. docs/deployment.md says how it is used.
// Secrets are not in here: scripts/azure_setup.py puts them into the vault, and the app reads them from there.
targetScope = 'resourceGroup'

@description('Where it runs; by default where the resource group is.')
param location string = resourceGroup().location

@description('Begins the names of all resources. The registry, the vault, the storage account and the app need names that nobody else in Azure has, so a hash of the resource group follows.')
@minLength(3)
@maxLength(9)
param prefix string = 'octopus'

@description('How GitHub names the repository whose pipeline may deliver, in the tokens of its jobs: sub_claim_prefix of gh api repos/OWNER/NAME/actions/oidc/customization/sub, such as repo:OWNER@ID/NAME@ID. The ids are in it for repositories of after June 2026.')
@minLength(8)
param subjectPrefix string

@description('Object id of whoever runs scripts/azure_setup.py: az ad signed-in-user show --query id')
param operatorId string

@description('The image that runs. The first delivery replaces the page that is there by default; see docs/deployment.md before deploying this again.')
@minLength(1)
param image string = 'mcr.microsoft.com/appsvc/staticsite:latest'

@description('Size of the plan. Deployment slots need at least S1 or P0v3.')
param planSku string = 'P0v3'

@description('How many instances. Beyond one, limits are counted together only with sharedRateLimits.')
@minValue(1)
@maxValue(30)
param instances int = 1

@description('Worker processes of each instance.')
@minValue(1)
@maxValue(16)
param workers int = 1

@description('Limits are counted in the Redis whose rediss:// URL the vault holds as RATE-LIMIT-STORAGE-URL.')
param sharedRateLimits bool = false

@description('Where the service is reached, such as https://api.example.com; by default the name that Azure gives.')
param publicUrl string = ''

@description('Sender of mails; the mail server must let it send as this address.')
param mailFrom string

@description('For how many days a deleted file can be got back, at the least, and the files of all as they were. More than archives of the database are kept.')
@minValue(2)
@maxValue(365)
param keepDeletedDays int = 14

@description('Who is told of alerts; nobody, when empty.')
param alertEmail string = ''

@description('Password of a Cosmos DB for MongoDB vCore cluster to make; none is made when empty. What it lacks is in docs/deployment.md.')
@secure()
param cosmosPassword string = ''

var suffix = take(uniqueString(resourceGroup().id), 8)
var appName = '${prefix}-${suffix}'

module logs 'modules/logs.bicep' = {
  name: 'logs'
  params: {
    location: location
    name: '${prefix}-logs'
  }
}

module identities 'modules/identities.bicep' = {
  name: 'identities'
  params: {
    location: location
    prefix: prefix
    subjectPrefix: subjectPrefix
  }
}

module registry 'modules/registry.bicep' = {
  name: 'registry'
  params: {
    location: location
    name: '${prefix}${suffix}'
    pullerId: identities.outputs.appPrincipalId
    pusherId: identities.outputs.buildPrincipalId
  }
}

module storage 'modules/storage.bicep' = {
  name: 'storage'
  params: {
    location: location
    name: '${prefix}${suffix}'
    writerId: identities.outputs.appPrincipalId
    keepDeletedDays: keepDeletedDays
  }
}

module vault 'modules/vault.bicep' = {
  name: 'vault'
  params: {
    location: location
    name: appName
    readerId: identities.outputs.appPrincipalId
    operatorId: operatorId
    workspaceId: logs.outputs.workspaceId
  }
}

module app 'modules/app.bicep' = {
  name: 'app'
  params: {
    location: location
    name: appName
    planSku: planSku
    instances: instances
    workers: workers
    image: image
    identityId: identities.outputs.appId
    identityClientId: identities.outputs.appClientId
    deployerId: identities.outputs.deployPrincipalId
    vaultUri: vault.outputs.uri
    blobUrl: storage.outputs.blobUrl
    container: storage.outputs.container
    publicUrl: publicUrl
    mailFrom: mailFrom
    sharedRateLimits: sharedRateLimits
    workspaceId: logs.outputs.workspaceId
  }
}

module alerts 'modules/alerts.bicep' = if (!empty(alertEmail)) {
  name: 'alerts'
  params: {
    prefix: prefix
    email: alertEmail
    siteId: app.outputs.siteId
  }
}

module cosmos 'modules/cosmos.bicep' = if (!empty(cosmosPassword)) {
  name: 'cosmos'
  params: {
    location: location
    name: appName
    password: cosmosPassword
  }
}

@description('For scripts/azure_setup.py.')
output vault string = vault.outputs.name

@description('The variables of the repository on GitHub.')
output variables object = {
  AZURE_TENANT_ID: tenant().tenantId
  AZURE_SUBSCRIPTION_ID: subscription().subscriptionId
  AZURE_BUILD_CLIENT_ID: identities.outputs.buildClientId
  AZURE_DEPLOY_CLIENT_ID: identities.outputs.deployClientId
  AZURE_REGISTRY: registry.outputs.name
  AZURE_RESOURCE_GROUP: resourceGroup().name
  AZURE_APP: app.outputs.name
}

@description('Where the service is.')
output url string = 'https://${app.outputs.host}'
